-- Renews leases of one bucket, and returns how many leases it has.
-- KEYS  leases        ARGV  lease_us, kind, then the members
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local expires = now + ARGV[1]
if ARGV[2] == 'concurrency' then redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now) end
for i = 3, #ARGV do
  if ARGV[2] == 'concurrency' then
    redis.call('ZADD', KEYS[1], expires, ARGV[i]) -- restores the state of a Redis that lost it
  else
    redis.call('ZADD', KEYS[1], 'XX', expires, ARGV[i]) -- a lost reservation must not be refunded
  end
end
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[1] / 1000)
return redis.call('ZCARD', KEYS[1])
