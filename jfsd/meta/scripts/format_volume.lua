-- Makes a database a volume, or changes the setting of one, in one step (format.md §3).
--
-- KEYS[1] setting
-- ARGV[1] prefix of all keys
-- ARGV[2] the setting that the caller has seen; '' if there was none
-- ARGV[3] the setting to store
-- ARGV[4] attribute record of the trash root; '' if trash is off
-- ARGV[5] key of the trash root's record, without the prefix
-- ARGV[6] attribute record of the root, for a new volume
-- Result: {1} stored; {0, setting or ''} nothing changed, somebody else was faster.
-- Safe to repeat: a repeat finds its own setting and answers {1}.

local prefix = ARGV[1]
local stored = redis.call('GET', KEYS[1]) or ''
if stored == ARGV[3] then
    return {1}
end
if stored ~= ARGV[2] then
    return {0, stored}
end
if ARGV[4] ~= '' then
    redis.call('SETNX', prefix .. ARGV[5], ARGV[4])
end
redis.call('SET', KEYS[1], ARGV[3])
if ARGV[2] == '' then
    redis.call('SET', prefix .. 'i1', ARGV[6])
end
return {1}
