-- Changes attributes other than the size (format.md §9.8).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 inode  10 caller's uid  11 what to set: 1 mode, 2 uid, 4 gid, 16 atime, 32 mtime,
--      128 atime now, 256 mtime now, 32768 flags  12 mode  13 uid  14 gid
--      15 atime  16 mtime (12 bytes each)  17 flags  18 '1' through an open handle
-- Result {0, attr}
-- Errors ENOENT EPERM EIO
--@include op
--@include account

local ino, caller, what = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])
local a = load(ino)
if not a then return {2} end
if ARGV[18] ~= '1' and in_trash(a) then return {1} end

local function sets(which) return bit.band(what, which) ~= 0 end
local flags, cur_mode = string.sub(a, 1, 1), mode(a)
local uid, gid = u32(a, 4), u32(a, 8)
local owns = caller == 0 or caller == uid
local new_mode, mode_ = tonumber(ARGV[12]), cur_mode
local new_uid, new_gid = uid, gid
local atime, mtime = string.sub(a, 12, 23), string.sub(a, 24, 35)
local changed = false

if sets(6) then
  if sets(1) then new_mode = bit.bor(new_mode, bit.band(cur_mode, 3072)) end
  if bit.band(cur_mode, 3072) ~= 0 then
    changed = true
    if kind(a) ~= DIRECTORY then
      local keep = 2047
      if caller ~= 0 or bit.band(cur_mode, 8) ~= 0 then keep = 1023 end
      mode_, new_mode = bit.band(mode_, keep), bit.band(new_mode, keep)
    end
  end
end
if sets(4) then
  if not owns then return {1} end
  new_gid = tonumber(ARGV[14])
end
if sets(2) then new_uid = tonumber(ARGV[13]) end
if new_gid ~= gid or new_uid ~= uid then changed = true end

local access = 0
if #a >= 80 then access = u32(a, 72) end
local rule
if sets(1) then
  if access ~= 0 then
    rule, mode_, changed = true, new_mode, true
  elseif new_mode ~= cur_mode then
    if not owns and (bit.band(cur_mode, 1023) ~= bit.band(new_mode, 1023)
      or bit.band(new_mode, bit.bnot(cur_mode), 3072) ~= 0) then
      return {1}
    end
    mode_, changed = new_mode, true
  end
end

-- A new value from 'now', from the argument, or none; nil is EPERM.
local function new_time(given, now, old, value)
  if sets(now) then
    changed = true
    return NOW
  end
  if not sets(given) or value == old then return old end
  changed = true
  if caller ~= 0 and uid == 0 then return nil end
  return value
end
atime = new_time(16, 128, atime, ARGV[15])
mtime = new_time(32, 256, mtime, ARGV[16])
if not atime or not mtime then return {1} end
if sets(32768) and string.char(tonumber(ARGV[17])) ~= flags then
  flags, changed = string.char(tonumber(ARGV[17])), true
end
if not changed then return {0, a} end

local tail = string.sub(a, 72)
if rule then
--@include acl
  local id = acl.chmod(P, access, new_mode)
  if not id then return {5} end
  tail = struct.pack('>I4', id) .. string.sub(a, 76)
end
local hi, lo = data_length(a)
if new_uid ~= uid and WITH_OWNERS then
  owner_add('user', whole(uid), -space(hi, lo), -1)
  owner_add('user', whole(new_uid), space(hi, lo), 1)
end
if new_gid ~= gid and WITH_OWNERS then
  owner_add('group', whole(gid), -space(hi, lo), -1)
  owner_add('group', whole(new_gid), space(hi, lo), 1)
end
a = flags .. struct.pack('>I2I4I4', kind(a) * 4096 + mode_, new_uid, new_gid)
  .. atime .. mtime .. NOW .. string.sub(a, 48, 71) .. tail
call('SET', P .. 'i' .. ino, a)
return record({0, a})
