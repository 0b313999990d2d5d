-- Removes an empty directory (format.md §9.5).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 parent  10 name  11 caller's uid  12 trash hour, '' deletes for real
-- Result {0, inode, attr of the directory before, or ''} and, but for a repeat, the parent's attr
-- Errors ENOENT ENOTDIR EPERM ENOTEMPTY EACCES
--@include op
--@include trash

local dir, name, uid, hour = ARGV[9], ARGV[10], tonumber(ARGV[11]), ARGV[12]
local entry = call('HGET', P .. 'd' .. dir, name)
if not entry then return {2} end
if string.byte(entry, 1) ~= DIRECTORY then return {20} end
local ino = decimal(string.sub(entry, 2, 9))
local up, a = load(dir), load(ino)
if not up then return {2} end
if kind(up) ~= DIRECTORY then return {20} end
if frozen(up) then return {1} end
if call('HLEN', P .. 'd' .. ino) > 0 then return {39} end
if a and uid ~= 0 and sticky(up) and uid ~= u32(up, 4) and uid ~= u32(a, 4) then return {13} end
if not a or skips_trash(a) then hour = '' end
local chain = quota_chain(dir)

call('HDEL', P .. 'd' .. dir, name)
if #dir < 19 then
  up = touched(up, -1)
  call('SET', P .. 'i' .. dir, up)
end
dir_stats(dir, 0, 0, -4096, -1)
chain_add(chain, -4096, -1)
for _, key in ipairs({'dirDataLength', 'dirUsedSpace', 'dirUsedInodes',
  'dirQuota', 'dirQuotaUsedSpace', 'dirQuotaUsedInodes'}) do
  call('HDEL', P .. key, ino)
end
if hour ~= '' then
  local bin, bin8 = hour_dir(hour)
  call('SET', P .. 'i' .. ino, with_parent(with_ctime(a), bin8))
  call('HSET', P .. 'd' .. bin, trash_name(dir, ino, name), entry)
  dir_stats(bin, 0, 0, 4096, 1)
else
  call('DEL', P .. 'i' .. ino, P .. 'x' .. ino)
  count(-4096, -1)
  if a and dir ~= TRASH_TEXT then owners_add(u32(a, 4), u32(a, 8), -4096, -1) end
end
return record({0, ino, a or ''}, up)
