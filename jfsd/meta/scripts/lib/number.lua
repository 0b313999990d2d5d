-- Numbers of 64 bits. A Lua number is a double: above 2^53 it rounds, so inodes, lengths and slice
-- ids are kept as 8 bytes, as two halves of 32 bits, or as decimal text, never as one number.

-- Decimal text of 8 bytes.
local function decimal(bytes)
  local hi, lo = struct.unpack('>I4I4', bytes)
  if hi < 2097152 then return string.format('%.0f', hi * 4294967296 + lo) end
  local low = hi * 967296 + lo
  local carry = math.floor(low / 1000000)
  return string.format('%.0f%06d', hi * 4294 + carry, low - carry * 1000000)
end

-- 8 bytes of decimal text.
local function octets(text)
  if #text < 16 then
    local n = tonumber(text)
    local hi = math.floor(n / 4294967296)
    return struct.pack('>I4I4', hi, n - hi * 4294967296)
  end
  local high, low = tonumber(string.sub(text, 1, -7)), tonumber(string.sub(text, -6))
  local hi = math.floor(high / 4294967296)
  low = low + (high - hi * 4294967296) * 1000000
  local carry = math.floor(low / 4294967296)
  return struct.pack('>I4I4', hi * 1000000 + carry, low - carry * 4294967296)
end

-- Text of a whole number that a double holds exactly; never in scientific form.
local function whole(n)
  return string.format('%.0f', n)
end
