-- Zeroes ranges of a file by hole records (format.md §9.9). Offsets are halves of 32 bits.
--@include attr

local CHUNK = 67108864
local MANY = 10000 -- chunks; from here on the caller must say which lists there are

local function chunk_of(hi, lo)
  local within = math.floor(lo / CHUNK)
  return hi * 64 + within, lo - within * CHUNK
end

local function hole(pos, len)
  return struct.pack('>I4I4I4I4I4I4', pos, 0, 0, 0, 0, len)
end

-- True if the caller must first list the chunks of the file between two offsets. What he
-- listed (ARGV[from] on) counts only if length and mtime (`seen`, 20 bytes) are as they were.
local function need_list(a, seen, l_hi, l_lo, r_hi, r_lo)
  local first, last = chunk_of(l_hi, l_lo), chunk_of(r_hi, r_lo)
  if last - first < MANY then return false end
  return seen ~= string.sub(a, 24, 35) .. string.sub(a, 52, 59)
end

-- Appends holes over [L, R). Chunks that lie wholly inside get one by `inner` (RPUSH or, only if
-- they have a list, RPUSHX); of very many only those listed in ARGV[from…].
local function push_holes(ino, l_hi, l_lo, r_hi, r_lo, inner, from)
  local first, first_pos = chunk_of(l_hi, l_lo)
  local last, last_pos = chunk_of(r_hi, r_lo)
  local key = P .. 'c' .. ino .. '_'
  if first == last then
    if last_pos > first_pos then
      call('RPUSH', key .. whole(first), hole(first_pos, last_pos - first_pos))
    end
    return
  end
  call('RPUSH', key .. whole(first), hole(first_pos, CHUNK - first_pos))
  local full = hole(0, CHUNK)
  if last - first < MANY then
    for index = first + 1, last - 1 do call(inner, key .. whole(index), full) end
  else
    for i = from, #ARGV do
      local index = tonumber(ARGV[i])
      if index > first and index < last then call('RPUSHX', key .. ARGV[i], full) end
    end
  end
  if last_pos > 0 then call('RPUSH', key .. whole(last), hole(0, last_pos)) end
end
