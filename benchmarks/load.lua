-- For wrk: sends the requests in the files named after the first argument, in turn, and writes
-- a new seed of ten digits, counted up from the first argument, where one holds the mark.
local MARK = "SEEDSEEDSE"
local before, after, count, turn, seed = {}, {}, 0, 0, 0

function init(arguments)
  seed = tonumber(arguments[1])
  count = #arguments - 1
  for index = 1, count do
    local file = assert(io.open(arguments[index + 1], "rb"))
    local text = file:read("*a")
    file:close()
    local first, last = text:find(MARK, 1, true)
    before[index] = first and text:sub(1, first - 1) or text
    after[index] = first and text:sub(last + 1)
  end
end

function request()
  turn = turn % count + 1
  if not after[turn] then return before[turn] end
  seed = seed + 1
  return before[turn] .. string.format("%d", seed) .. after[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    "\nRESULT answers=%d duration_us=%d bytes=%d refused=%d broken=%d timeouts=%d p50_us=%d p99_us=%d\n",
    summary.requests, summary.duration, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
