-- Commits one slice: appends its record to the chunk's list and grows the file (format.md §9.11).
-- The identity is that of the slice, so a slice is committed once, by whomever.
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 inode  10 chunk index  11 record (24 bytes)  12 end of the data in the file (8 bytes)
--      13 mtime (12 bytes)
-- Result {0, records in the list, attr}
-- Errors ENOENT EPERM EDQUOT ENOSPC
--@include op
--@include growth

local ino = ARGV[9]
local a = load(ino)
if not a then return {2} end
if kind(a) ~= FILE then return {1} end
local hi, lo = data_length(a)
local end_hi, end_lo = struct.unpack('>I4I4', ARGV[12])
local length = string.sub(a, 52, 59)
if end_hi > hi or end_hi == hi and end_lo > lo then
  local bytes = space(end_hi, end_lo) - space(hi, lo)
  local over = growth_over(ino, a, bytes)
  if over then return {over} end
  length = ARGV[12]
  grow(ino, a, end_hi - hi, end_lo - lo, bytes)
end
a = string.sub(a, 1, 23) .. ARGV[13] .. NOW .. string.sub(a, 48, 51) .. length .. string.sub(a, 60)
call('SET', P .. 'i' .. ino, a)
return record({0, call('RPUSH', P .. 'c' .. ino .. '_' .. ARGV[10], ARGV[11]), a})
