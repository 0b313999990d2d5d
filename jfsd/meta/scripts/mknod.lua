-- Creates a node of any type (format.md §9.2).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 parent  10 name  11 new inode  12 type  13 mode  14 umask  15 uid  16 gid  17 rdev
--      18 symlink target  19 what an existing name means: '' an error, 'reuse' a regular file is
--      the result  20 sid: not '', then a file without a name, sustained by that session
-- Result {0, inode, attr, created 1|0} and, but for a repeat, the parent's attr if it changed
-- Errors ENOENT ENOTDIR EPERM EDQUOT ENOSPC EIO, {EEXIST, inode, attr or ''}
--@include op
--@include account

local dir, name, ino = ARGV[9], ARGV[10], ARGV[11]
local type_ = tonumber(ARGV[12])
local uid, gid = tonumber(ARGV[15]), tonumber(ARGV[16])
local unnamed = ARGV[20] ~= ''

local chain = quota_chain(dir)
local over = owner_over('user', ARGV[15], 4096, 1) or volume_over(4096, 1)
  or chain_over(chain, 4096, 1)
if over then return {over} end

local up = load(dir)
if not up then return {2} end
local up_mode = mode(up)
if bit.band(up_mode, 1024) ~= 0 then gid = u32(up, 8) end
over = owner_over('group', whole(gid), 4096, 1)
if over then return {over} end
if kind(up) ~= DIRECTORY then return {20} end
if in_trash(up) then return {2} end
if immutable(up) then return {1} end
local entry = not unnamed and call('HGET', P .. 'd' .. dir, name)
if entry then
  local existing = decimal(string.sub(entry, 2, 9))
  local attr = call('GET', P .. 'i' .. existing)
  if ARGV[19] == 'reuse' and string.byte(entry, 1) == FILE then
    if not attr then return {5} end
    return {0, existing, attr, 0}
  end
  return {17, existing, attr or ''}
end

local bits = bit.band(tonumber(ARGV[13]), 4095)
local access, default = 0, 0
if #up >= 80 and type_ ~= SYMLINK then default = u32(up, 76) end
if default ~= 0 then
--@include acl
  bits, access = acl.inherit(P, default, bits)
  if not bits then return {5} end
  if type_ ~= DIRECTORY then default = 0 end
elseif type_ == SYMLINK then
  bits = 511
else
  bits = bit.band(bits, bit.bnot(tonumber(ARGV[14])))
end
if bit.band(up_mode, 1024) ~= 0 and type_ == DIRECTORY then bits = bit.bor(bits, 1024) end

local length, links = 0, 1
if type_ == DIRECTORY then length, links = 4096, 2 end
if type_ == SYMLINK then length = #ARGV[18] end
if unnamed then links = 0 end
local rdev = 0
if type_ ~= DIRECTORY and type_ ~= SYMLINK then rdev = tonumber(ARGV[17]) end
local ino8 = octets(ino)
local attr = string.char(bit.band(string.byte(up, 1), 32))
  .. struct.pack('>I2I4I4', type_ * 4096 + bits, uid, gid) .. NOW .. NOW .. NOW
  .. struct.pack('>I4I4I4I4', links, 0, length, rdev) .. octets(dir)
if access ~= 0 or default ~= 0 then attr = attr .. struct.pack('>I4I4', access, default) end
local tier = 0
if #up == 73 or #up == 81 then tier = string.byte(up, #up - 1) end
if tier ~= 0 then attr = attr .. string.char(tier) end
attr = attr .. '\0'

call('SET', P .. 'i' .. ino, attr)
count(4096, 1)
owners_add(uid, gid, 4096, 1)
if unnamed then
  call('SADD', P .. 'session' .. ARGV[20], ino)
  return record({0, ino, attr, 1})
end
up = touched(up, type_ == DIRECTORY and 1 or 0)
call('SET', P .. 'i' .. dir, up)
call('HSET', P .. 'd' .. dir, name, string.char(type_) .. ino8)
if type_ == SYMLINK then call('SET', P .. 's' .. ino, ARGV[18]) end
if type_ == DIRECTORY then
  call('HSET', P .. 'dirUsedInodes', ino, '0')
  call('HSET', P .. 'dirDataLength', ino, '0')
  call('HSET', P .. 'dirUsedSpace', ino, '0')
end
dir_stats(dir, 0, 0, 4096, 1)
chain_add(chain, 4096, 1)
return record({0, ino, attr, 1}, up)
