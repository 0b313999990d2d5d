-- Adds a name to a file (format.md §9.7), or gives one to a file without (O_TMPFILE).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 inode  10 parent  11 name  12 sid, '' none
-- Result {0, attr} and, but for a repeat, the parent's attr
-- Errors ENOENT EPERM EDQUOT ENOTDIR EEXIST
--@include op
--@include account

local ino, dir, name = ARGV[9], ARGV[10], ARGV[11]
local a, up = load(ino), load(dir)
if not a then return {2} end
if kind(a) == DIRECTORY then return {1} end
local hi, lo = data_length(a)
local bytes, chain = space(hi, lo), quota_chain(dir)
local over = owner_over('user', whole(u32(a, 4)), 0, 1)
  or owner_over('group', whole(u32(a, 8)), 0, 1) or chain_over(chain, bytes, 1)
if over then return {over} end
if not up then return {2} end
if kind(up) ~= DIRECTORY then return {20} end
if in_trash(up) then return {2} end
if immutable(up) or frozen(a) then return {1} end
if call('HEXISTS', P .. 'd' .. dir, name) == 1 then return {17} end
local old = parent(a)
local unnamed = u32(a, 48) == 0
if unnamed and (ARGV[12] == '' or call('SISMEMBER', P .. 'session' .. ARGV[12], ino) == 0) then
  return {2}
end

a = relinked(a, 1)
if unnamed then
  a = with_parent(a, octets(dir))
  call('SREM', P .. 'session' .. ARGV[12], ino)
else
  a = with_parent(a, NO_PARENT)
  if old ~= NO_PARENT then call('HINCRBY', P .. 'p' .. ino, decimal(old), 1) end
  call('HINCRBY', P .. 'p' .. ino, dir, 1)
end
call('SET', P .. 'i' .. ino, a)
call('HSET', P .. 'd' .. dir, name, string.char(kind(a)) .. octets(ino))
up = touched(up, 0)
call('SET', P .. 'i' .. dir, up)
dir_stats(dir, hi, lo, bytes, 1)
chain_add(chain, bytes, 1)
return record({0, a}, up)
