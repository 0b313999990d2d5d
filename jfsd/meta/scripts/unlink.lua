-- Removes a name of anything but a directory (format.md §9.3).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 parent  10 name  11 caller's uid  12 sid, '' none  13 trash hour, '' deletes for real
--      14 inodes open here ' 12 34 ', or '?': not said  15 inode that 14 speaks of, '' any
-- Result {0, inode, attr or '', length of data to delete or '', sustained 1|0} and, but for a
--        repeat, the parent's attr
--        {-2, inode} nothing was done: is this inode open?
-- Errors ENOENT ENOTDIR EPERM EACCES
--@include op
--@include trash
--@include remove

local dir, name, uid, hour = ARGV[9], ARGV[10], tonumber(ARGV[11]), ARGV[13]
local entry = call('HGET', P .. 'd' .. dir, name)
if not entry then return {2} end
local type_ = string.byte(entry, 1)
if type_ == DIRECTORY then return {1} end
local ino = decimal(string.sub(entry, 2, 9))
local up, a = load(dir), load(ino)
if not up then return {2} end
if kind(up) ~= DIRECTORY then return {20} end
if frozen(up) then return {1} end

local links, trashed_name = 0, ''
if a then
  if uid ~= 0 and sticky(up) and uid ~= u32(up, 4) and uid ~= u32(a, 4) then return {13} end
  if frozen(a) then return {1} end
  links = u32(a, 48)
  if skips_trash(a) then hour = '' end
  if hour ~= '' then
    trashed_name = trash_name(dir, ino, name)
    if links > 1 and in_hour(hour, trashed_name) then hour = '' end
  end
else
  hour = ''
end
if hour == '' and links > 0 then links = links - 1 end
if links == 0 and a and type_ == FILE and ARGV[12] ~= ''
  and (ARGV[14] == '?' or ARGV[15] ~= '' and ARGV[15] ~= ino) then
  return {-2, ino}
end
local chain = quota_chain(dir)

call('HDEL', P .. 'd' .. dir, name)
if #dir < 19 then
  up = touched(up, 0)
  call('SET', P .. 'i' .. dir, up)
end
local hi, lo = 0, 0
if a then hi, lo = data_length(a) end
local bytes = space(hi, lo)
dir_stats(dir, -hi, -lo, -bytes, -1)
chain_add(chain, -bytes, -1)

local freed, sustained = '', 0
if hour ~= '' then
  local bin, bin8 = hour_dir(hour)
  a = with_ctime(a)
  if parent(a) == NO_PARENT then
    call('HINCRBY', P .. 'p' .. ino, bin, 1)
    call('HINCRBY', P .. 'p' .. ino, dir, -1)
  else
    a = with_parent(a, bin8)
  end
  call('SET', P .. 'i' .. ino, a)
  call('HSET', P .. 'd' .. bin, trashed_name, entry)
  dir_stats(bin, hi, lo, bytes, 1)
else
  if a then a = relinked(a, links - u32(a, 48)) end
  if links > 0 then
    call('SET', P .. 'i' .. ino, a)
    if parent(a) == NO_PARENT then call('HINCRBY', P .. 'p' .. ino, dir, -1) end
  else
    freed, sustained = delete_node(ino, type_, a, ARGV[12], ARGV[14])
  end
end
return record({0, ino, a or '', freed, sustained}, up)
