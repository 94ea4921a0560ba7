-- The end of one request: releases its leases and settles its tokens.
-- KEYS  for each leased check: meter, leases
-- ARGV  again (1: this may be a repetition), then for each check: member, interval_us (0: no
--       meter), reserved, used
for i = 1, #KEYS / 2 do
  local at = 4 * i - 2
  local interval, used = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3])
  local held = redis.call('ZREM', KEYS[2 * i], ARGV[at])
  -- An expired lease has given its reservation back: all that was used is owed.
  local owed = 0
  if held == 1 then owed = used - tonumber(ARGV[at + 2]) elseif ARGV[1] == '0' then owed = used end
  if interval > 0 and owed ~= 0 then
    local meter = KEYS[2 * i - 1]
    local tat = read_meter(meter)
    if owed > 0 then tat = math.max(tat, now) end
    set_meter(meter, tat + owed * interval)
  end
end
return 1
