-- Allocates, punches or zeroes a range of a file (format.md §9.10).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 inode  10 mode: 1 keep size, 2 punch hole, 16 zero range  11 offset (8 bytes)
--      12 end (8 bytes)  13 mtime and length when the chunks were listed, or ''  14… their indexes
-- Result {0, attr}; {-2} nothing was done: list the file's chunks first
-- Errors ENOENT EPIPE EPERM EDQUOT ENOSPC
--@include op
--@include growth
--@include holes

local ino, how = ARGV[9], tonumber(ARGV[10])
local a = load(ino)
if not a then return {2} end
if kind(a) == 4 then return {32} end
if kind(a) ~= FILE or immutable(a) then return {1} end
if frozen(a) and how ~= 0 and how ~= 1 then return {1} end
local hi, lo = data_length(a)
local off_hi, off_lo = struct.unpack('>I4I4', ARGV[11])
local end_hi, end_lo = struct.unpack('>I4I4', ARGV[12])
local new_hi, new_lo = hi, lo
local longer = end_hi > hi or end_hi == hi and end_lo > lo
if how % 2 == 0 and longer then new_hi, new_lo = end_hi, end_lo end
local bytes = space(new_hi, new_lo) - space(hi, lo)
local over = growth_over(ino, a, bytes)
if over then return {over} end
if longer then end_hi, end_lo = hi, lo end
local zeroes = how >= 2 and (off_hi < hi or off_hi == hi and off_lo < lo)
if zeroes and need_list(a, ARGV[13], off_hi, off_lo, end_hi, end_lo) then return {-2} end

grow(ino, a, new_hi - hi, new_lo - lo, bytes)
a = string.sub(a, 1, 23) .. NOW .. NOW .. string.sub(a, 48, 51)
  .. struct.pack('>I4I4', new_hi, new_lo) .. string.sub(a, 60)
call('SET', P .. 'i' .. ino, a)
if zeroes then push_holes(ino, off_hi, off_lo, end_hi, end_lo, 'RPUSH', 14) end
return record({0, a})
