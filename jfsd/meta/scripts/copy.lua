-- Lets a range of one file share the slices of another (format.md §9.14, §11.5).
--
-- KEYS[1] and ARGV[1…8]: see lib/op.lua
-- ARGV  9 source inode  10 its offset (8 bytes)  11 target inode  12 its offset (8 bytes)
--      13 bytes, at most 2^32
-- Result {0, bytes copied, attr of the target or '' if none}
-- Errors ENOENT EINVAL EPERM EDQUOT ENOSPC EIO
--@include op
--@include growth
--@include holes

local src, dst, size = ARGV[9], ARGV[11], tonumber(ARGV[13])
local from, a = load(src), load(dst)
if not from or not a then return {2} end
if kind(from) ~= FILE or kind(a) ~= FILE then return {22} end
local s_hi, s_lo = struct.unpack('>I4I4', ARGV[10])
local d_hi, d_lo = struct.unpack('>I4I4', ARGV[12])
local len_hi, len_lo = data_length(from)
if s_hi > len_hi or s_hi == len_hi and s_lo >= len_lo then return {0, 0, ''} end
if (len_hi - s_hi) * 4294967296 + (len_lo - s_lo) < size then
  size = (len_hi - s_hi) * 4294967296 + (len_lo - s_lo)
end
if frozen(a) then return {1} end
local hi, lo = data_length(a)
local new_hi, new_lo = hi, lo
local carry = math.floor((d_lo + size) / 4294967296)
local end_hi, end_lo = d_hi + carry, d_lo + size - carry * 4294967296
if end_hi > hi or end_hi == hi and end_lo > lo then new_hi, new_lo = end_hi, end_lo end
local bytes = space(new_hi, new_lo) - space(hi, lo)
local over = growth_over(dst, a, bytes)
if over then return {over} end

-- Pieces that show in [first, last) of a chunk, in order and without gaps: {pos, id, size, off,
-- len}. Later records hide earlier ones, so they are looked at from the end for what is still
-- open.
local function view(records, first, last)
  local pieces, open = {}, {{first, last}}
  for i = #records, 1, -1 do
    if #records[i] ~= 24 then return nil end
    local pos, id_hi, id_lo, whole_size, off, len = struct.unpack('>I4I4I4I4I4I4', records[i])
    local hole_ = id_hi == 0 and id_lo == 0
    local still = {}
    for _, gap in ipairs(open) do
      local begin, stop = math.max(gap[1], pos), math.min(gap[2], pos + len)
      if begin < stop then
        pieces[#pieces + 1] = {begin, string.sub(records[i], 5, 12), whole_size,
          hole_ and 0 or off + begin - pos, stop - begin}
        if gap[1] < begin then still[#still + 1] = {gap[1], begin} end
        if stop < gap[2] then still[#still + 1] = {stop, gap[2]} end
      else
        still[#still + 1] = gap
      end
    end
    open = still
  end
  for _, gap in ipairs(open) do
    pieces[#pieces + 1] = {gap[1], NO_PARENT, 0, 0, gap[2] - gap[1]}
  end
  table.sort(pieces, function(x, y) return x[1] < y[1] end)
  return pieces
end

local pushes = {}
local s_index, s_pos = chunk_of(s_hi, s_lo)
local d_index, d_pos = chunk_of(d_hi, d_lo)
local left = size
while left > 0 do
  local take = math.min(CHUNK - s_pos, left)
  local pieces = view(call('LRANGE', P .. 'c' .. src .. '_' .. whole(s_index), 0, -1),
    s_pos, s_pos + take)
  if not pieces then return {5} end
  for _, piece in ipairs(pieces) do
    local id, off, len = piece[2], piece[4], piece[5]
    while len > 0 do
      local part = math.min(len, CHUNK - d_pos)
      pushes[#pushes + 1] = {d_index, id, piece[3],
        struct.pack('>I4', d_pos) .. id .. struct.pack('>I4I4I4', piece[3], off, part)}
      if id ~= NO_PARENT then off = off + part end
      len, d_pos = len - part, d_pos + part
      if d_pos == CHUNK then d_index, d_pos = d_index + 1, 0 end
    end
  end
  left, s_index, s_pos = left - take, s_index + 1, 0
end

for _, push in ipairs(pushes) do
  call('RPUSH', P .. 'c' .. dst .. '_' .. whole(push[1]), push[4])
  if push[2] ~= NO_PARENT then
    call('HINCRBY', P .. 'sliceRef', 'k' .. decimal(push[2]) .. '_' .. whole(push[3]), 1)
  end
end
grow(dst, a, new_hi - hi, new_lo - lo, bytes)
a = string.sub(a, 1, 23) .. NOW .. NOW .. string.sub(a, 48, 51)
  .. struct.pack('>I4I4', new_hi, new_lo) .. string.sub(a, 60)
call('SET', P .. 'i' .. dst, a)
return record({0, size, a})
