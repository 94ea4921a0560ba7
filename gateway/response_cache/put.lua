-- Store ARGV[1] under KEYS[1] for ARGV[2] ms. A Redis that is full or read-only refuses that, which
-- is no reason to refuse the calls that were sent together with it.
redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
