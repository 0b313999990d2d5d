-- Makes a generation the one that may write for a mount (handover.md §4).
-- KEYS, ARGV: those of lib/op.lua; ARGV[9] seconds until the mount's hash is forgotten if nobody
-- refreshes it. Result {0}, or {-1} when a newer generation has claimed it.
--@include op

call('HSET', KEYS[1], 'g', ARGV[2])
call('EXPIRE', KEYS[1], ARGV[9])
return {0}
