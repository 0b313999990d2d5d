-- Sets the length of a file and zeroes what lies between the old and the new (format.md §9.9).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 inode  10 length (8 bytes)  11 '1' through an open handle
--      12 mtime and length (20 bytes) when the chunks were listed, or ''  13… their indexes
-- Result {0, attr}; {-2} nothing was done: list the file's chunks first
-- Errors ENOENT EPERM EDQUOT ENOSPC
--@include op
--@include growth
--@include holes

local ino, length = ARGV[9], ARGV[10]
local a = load(ino)
if not a then return {2} end
if kind(a) ~= FILE or frozen(a) then return {1} end
if ARGV[11] ~= '1' and in_trash(a) then return {1} end
if string.sub(a, 52, 59) == length then return {0, a} end
local hi, lo = data_length(a)
local new_hi, new_lo = struct.unpack('>I4I4', length)
local bytes = space(new_hi, new_lo) - space(hi, lo)
local over = growth_over(ino, a, bytes)
if over then return {over} end
local l_hi, l_lo, r_hi, r_lo = hi, lo, new_hi, new_lo
if new_hi < hi or new_hi == hi and new_lo < lo then
  l_hi, l_lo, r_hi, r_lo = new_hi, new_lo, hi, lo
end
if need_list(a, ARGV[12], l_hi, l_lo, r_hi, r_lo) then return {-2} end

grow(ino, a, new_hi - hi, new_lo - lo, bytes)
a = string.sub(a, 1, 23) .. NOW .. NOW .. string.sub(a, 48, 51) .. length .. string.sub(a, 60)
call('SET', P .. 'i' .. ino, a)
push_holes(ino, l_hi, l_lo, r_hi, r_lo, 'RPUSHX', 13)
return record({0, a})
