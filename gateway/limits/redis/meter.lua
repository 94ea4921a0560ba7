-- Stands before admit.lua and finish.lua. All times are from Redis's clock, in µs: those of the
-- gateways may differ.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function set_meter(meter, tat)
  if tat > now then
    local value = string.format('%.3f:%.0f', tat, now)
    redis.call('SET', meter, value, 'PX', math.ceil((tat - now) / 1000))
  else
    redis.call('DEL', meter)
  end
end

-- When a bucket is empty again. Beside it stands when that was written: if the clock was set back
-- since, or another server with an earlier one has taken over, both move with it, once.
local function read_meter(meter)
  local value = redis.call('GET', meter)
  if not value then return now end
  local tat, written = string.match(value, '^([^:]+):?(.*)$')
  tat, written = tonumber(tat), tonumber(written) or now
  if written > now then
    tat = tat - (written - now)
    set_meter(meter, tat)
  end
  return tat
end
