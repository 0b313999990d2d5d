-- Remove an extended attribute (format.md §9.15). No time of the node changes.
--
-- ARGV[9] inode  [10] name
-- Result {0}; {61} ENODATA: there is none.
--@include op

if call('HDEL', P .. 'x' .. ARGV[9], ARGV[10]) == 0 then return { 61 } end
return record({ 0 })
