-- Take the cluster-wide turn of a background job (format.md §17).
--
-- ARGV[9] counter  [10] now in seconds  [11] period in seconds
-- Result {0, 1} it is our turn and everybody else's next one is a period away; {0, 0} it is not.
--@include op

local last = tonumber(call('GET', P .. ARGV[9]) or 0)
if last > tonumber(ARGV[10]) - tonumber(ARGV[11]) then return { 0, 0 } end
call('SET', P .. ARGV[9], ARGV[10])
return { 0, 1 }
