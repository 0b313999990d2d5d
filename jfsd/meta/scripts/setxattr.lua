-- Set an extended attribute (format.md §9.15). No time of the node changes.
--
-- ARGV[9] inode  [10] name  [11] value  [12] 0 create or replace, 1 create, 2 replace
-- Result {0}; {2} no such node, {17} EEXIST, {61} ENODATA.
--@include op

local key = P .. 'x' .. ARGV[9]
if call('EXISTS', P .. 'i' .. ARGV[9]) == 0 then return { 2 } end
if ARGV[12] ~= '0' then
  local there = call('HEXISTS', key, ARGV[10]) == 1
  if ARGV[12] == '1' and there then return { 17 } end
  if ARGV[12] == '2' and not there then return { 61 } end
end
call('HSET', key, ARGV[10], ARGV[11])
return record({ 0 })
