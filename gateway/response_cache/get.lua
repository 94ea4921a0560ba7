-- The response stored under KEYS[1], or nil.
return redis.call('GET', KEYS[1])
