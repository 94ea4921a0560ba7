-- Returns the members of one bucket's youngest leases, those beyond a concurrency limit.
-- KEYS  leases        ARGV  capacity
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local members = redis.call('ZRANGE', KEYS[1], 0, -1)
table.sort(members) -- each starts with the time of its admission
local over = {}
for i = ARGV[1] + 1, #members do over[#over + 1] = members[i] end
return over
