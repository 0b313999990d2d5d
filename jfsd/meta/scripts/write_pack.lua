-- Commits a slice that holds many writes of one file: a record for each, in the order of the writes
-- (format.md §9.11), and as many references as there are records (§11.5). Every record is taken or
-- refused as if it were committed alone; the identity is that of the slice.
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 inode  10 mtime (12 bytes)  11 field of the slice in sliceRef
--      12 n × 28 bytes: chunk index (4 bytes), record (24 bytes)
-- Result {0, attr, errno of the first refusal or 0, offset in the slice (4 bytes) of each record that
-- was refused, then for each chunk: its index, records in its list}
-- Errors ENOENT EPERM; EDQUOT ENOSPC: no record was taken
--@include op
--@include growth

local ino, parts = ARGV[9], ARGV[12]
local a = load(ino)
if not a then return {2} end
if kind(a) ~= FILE then return {1} end
local old_hi, old_lo = data_length(a)
local hi, lo = old_hi, old_lo

-- End of the data of the record at `at`, in halves.
local function stop(at)
  local index, pos, _, _, _, _, len = struct.unpack('>I4I4I4I4I4I4I4', parts, at)
  local s_hi = math.floor(index / 64)
  local s_lo = (index - s_hi * 64) * 67108864 + pos + len
  if s_lo < 4294967296 then return s_hi, s_lo end
  return s_hi + 1, s_lo - 4294967296
end

local function beyond(x_hi, x_lo, y_hi, y_lo) return x_hi > y_hi or x_hi == y_hi and x_lo > y_lo end

local function over(new_hi, new_lo)
  return growth_over(ino, a, space(new_hi, new_lo) - space(old_hi, old_lo))
end

for at = 1, #parts, 28 do
  local s_hi, s_lo = stop(at)
  if beyond(s_hi, s_lo, hi, lo) then hi, lo = s_hi, s_lo end
end
local refused, marks, errno = {}, '', 0
if beyond(hi, lo, old_hi, old_lo) and over(hi, lo) then
  local least_hi, least_lo
  hi, lo = old_hi, old_lo
  for at = 1, #parts, 28 do
    local s_hi, s_lo = stop(at)
    local no = false
    if beyond(s_hi, s_lo, hi, lo) then
      no = least_hi and not beyond(least_hi, least_lo, s_hi, s_lo)
      if not no then
        local why = over(s_hi, s_lo)
        if why then
          no, least_hi, least_lo = true, s_hi, s_lo
          if errno == 0 then errno = why end
        else
          hi, lo = s_hi, s_lo
        end
      end
    end
    if no then
      refused[at] = true
      marks = marks .. string.sub(parts, at + 20, at + 23)
    end
  end
end

local lists, order, taken = {}, {}, 0
for at = 1, #parts, 28 do
  if not refused[at] then
    local index = struct.unpack('>I4', parts, at)
    if not lists[index] then
      lists[index] = {}
      order[#order + 1] = index
    end
    lists[index][#lists[index] + 1] = string.sub(parts, at + 4, at + 27)
    taken = taken + 1
  end
end
if taken == 0 then return {errno} end

if taken > 1 then call('HINCRBY', P .. 'sliceRef', ARGV[11], taken - 1) end
grow(ino, a, hi - old_hi, lo - old_lo, space(hi, lo) - space(old_hi, old_lo))
a = string.sub(a, 1, 23) .. ARGV[10] .. NOW .. string.sub(a, 48, 51) .. struct.pack('>I4I4', hi, lo)
  .. string.sub(a, 60)
call('SET', P .. 'i' .. ino, a)
local result = {0, a, errno, marks}
for _, index in ipairs(order) do
  result[#result + 1] = index
  result[#result + 1] = call('RPUSH', P .. 'c' .. ino .. '_' .. whole(index), unpack(lists[index]))
end
return record(result)
