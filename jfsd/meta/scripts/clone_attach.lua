-- Give a cloned directory its entry, now that its tree is complete (format.md §9.17).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV[9] inode  [10] parent  [11] name
-- Result {0}; errors ENOENT ENOTDIR EPERM EEXIST.
--@include op
--@include account

local ino, dir, name = ARGV[9], ARGV[10], ARGV[11]
local up = load(dir)
if not up or not call('ZSCORE', P .. 'detachedNodes', ino) then return { 2 } end
if kind(up) ~= DIRECTORY then return { 20 } end
if in_trash(up) then return { 2 } end
if immutable(up) then return { 1 } end
if call('HEXISTS', P .. 'd' .. dir, name) == 1 then return { 17 } end
call('HSET', P .. 'd' .. dir, name, string.char(DIRECTORY) .. octets(ino))
call('SET', P .. 'i' .. dir, touched(up, 1))
call('ZREM', P .. 'detachedNodes', ino)
dir_stats(dir, 0, 0, 4096, 1)
return record({ 0 })
