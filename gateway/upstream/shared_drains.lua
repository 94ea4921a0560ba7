-- Drains, lifts or restores a replica, if one is given, and returns what is known: state, changes,
-- then the drained replicas: name, us left, ...
-- KEYS  drains, a sorted set:   name            the drain's end, us of Redis's clock
--                               "lifted NAME"   until when that is remembered
--                               "state ID"      minus the number of changes since it began
-- ARGV  longest_us, then name, us (0: lift), then 1 to restore: unless it was set or lifted since
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local drains, latest = KEYS[1], now + ARGV[1]
redis.call('ZREMRANGEBYSCORE', drains, '(0', string.format('%.0f', now))
-- A clock that was set back must not make a drain longer than one may be.
redis.call('ZREMRANGEBYSCORE', drains, string.format('(%.0f', latest), '+inf')
local state = redis.call('ZRANGEBYSCORE', drains, '-inf', 0)[1]
if not state then
  state = string.format('state %.0f', now)
  redis.call('ZADD', drains, 0, state)
end
local name, us = ARGV[2], tonumber(ARGV[3])
local lifted = name and 'lifted ' .. name
local is_known = ARGV[4] and (redis.call('ZSCORE', drains, name) or redis.call('ZSCORE', drains, lifted))
if name and not is_known then
  if us > 0 then
    redis.call('ZADD', drains, string.format('%.0f', now + us), name)
    redis.call('ZREM', drains, lifted)
  else
    redis.call('ZREM', drains, name)
    redis.call('ZADD', drains, string.format('%.0f', latest), lifted)
  end
  redis.call('ZINCRBY', drains, -1, state)
end
local known = {state, -redis.call('ZSCORE', drains, state)}
local all = redis.call('ZRANGEBYSCORE', drains, '(0', '+inf', 'WITHSCORES')
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 7) ~= 'lifted ' and tonumber(all[i + 1]) > now then
    known[#known + 1] = all[i]
    known[#known + 1] = math.floor(all[i + 1] - now)
  end
end
return known
