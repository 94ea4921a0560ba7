-- One admission: either every check fits and is spent, or none is.
-- KEYS  for each check: meter, leases
-- ARGV  lease, lease_us, then for each check: kind, capacity, interval_us (of one unit), cost
-- Returns { 1 if admitted or 0, the time, then per check the use in 1/1000 units, with this request
-- if admitted }
local lease, lease_us = ARGV[1], tonumber(ARGV[2])
local checks, admitted = {}, 1

-- Tokens that a dead process had reserved and never settled.
local function expired_units(leases)
  local units = 0
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now)) do
    units = units + tonumber(string.match(member, ':(.+)$'))
  end
  if units > 0 then redis.call('ZREMRANGEBYSCORE', leases, '-inf', now) end
  return units
end

-- Leases that were written before the clock was set back get no more time than any other.
local function shorten(leases)
  local latest = string.format('%.0f', now + lease_us)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', leases, '(' .. latest, '+inf')) do
    redis.call('ZADD', leases, latest, member)
  end
end

for i = 1, #KEYS / 2 do
  local at = 4 * i - 1
  local check = {
    meter = KEYS[2 * i - 1], leases = KEYS[2 * i], kind = ARGV[at],
    interval = tonumber(ARGV[at + 2]), cost = tonumber(ARGV[at + 3]),
  }
  local capacity = tonumber(ARGV[at + 1])
  if check.kind ~= 'requests' then shorten(check.leases) end
  if check.kind == 'concurrency' then
    redis.call('ZREMRANGEBYSCORE', check.leases, '-inf', now)
    check.used = redis.call('ZCARD', check.leases)
  else
    check.tat = read_meter(check.meter)
    if check.kind == 'tokens' then
      local units = expired_units(check.leases)
      if units > 0 then
        check.tat = check.tat - units * check.interval
        set_meter(check.meter, check.tat)
      end
    end
    check.tat = math.max(check.tat, now)
    check.used = (check.tat - now) / check.interval
    capacity = capacity + 1 / check.interval -- 1 µs of slack: sums of times are not exact
  end
  if check.used + check.cost > capacity then admitted = 0 end
  checks[i] = check
end

local reply = { admitted, now }
for i, check in ipairs(checks) do
  if admitted == 1 then
    check.used = check.used + check.cost
    if check.kind ~= 'concurrency' and check.cost > 0 then
      set_meter(check.meter, check.tat + check.cost * check.interval)
    end
    if check.kind ~= 'requests' then
      redis.call('ZADD', check.leases, now + lease_us, lease .. ':' .. ARGV[4 * i + 2])
      redis.call('PEXPIRE', check.leases, 2 * lease_us / 1000)
    end
  end
  reply[i + 2] = math.ceil(check.used * 1000)
end
return reply
