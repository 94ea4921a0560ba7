-- The response stored under KEYS[1] and how many ms it has left, or nil.
local response = redis.call('GET', KEYS[1])
if not response then
  return false
end
return {response, redis.call('PTTL', KEYS[1])}
