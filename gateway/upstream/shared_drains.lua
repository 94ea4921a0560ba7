-- Drains or lifts a replica, if one is given, and returns those that are drained: name, us left, ...
-- KEYS  drains (each name with its end, us of Redis's clock)   ARGV  longest_us, then name, us (0: lift)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if #ARGV == 3 then
  if tonumber(ARGV[3]) > 0 then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[3]), ARGV[2])
  else
    redis.call('ZREM', KEYS[1], ARGV[2])
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
-- A clock that was set back must not make a drain longer than one may be.
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now + ARGV[1]), '+inf')
local drained = {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  drained[i] = all[i]
  drained[i + 1] = math.floor(all[i + 1] - now)
end
return drained
