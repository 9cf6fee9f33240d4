-- For wrk. Arguments: the first seed, a number of answers, and files with one request each.
-- The requests are sent in turn, with a new seed of ten digits, counted up from the first, where
-- one holds the mark. If the number is not 0, the rate is also taken after so many answers: with
-- slow answers the first ones come late and all at once, and a short look would count them wrongly.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long s; long us; } benchmark_time;
  int gettimeofday(benchmark_time *now, void *zone);
]]

local MARK = "SEEDSEEDSE"
local before, after, count, turn, seed = {}, {}, 0, 0, 0
local threads = {}
answers, settled_us, last_us = 0, 0, 0 -- global, so that `done` can ask the thread for them

local function now_us()
  local now = ffi.new("benchmark_time")
  ffi.C.gettimeofday(now, nil)
  return tonumber(now.s) * 1e6 + tonumber(now.us)
end

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  seed = tonumber(arguments[1])
  local settle = tonumber(arguments[2])
  count = #arguments - 2
  for index = 1, count do
    local file = assert(io.open(arguments[index + 2], "rb"))
    local text = file:read("*a")
    file:close()
    local first, last = text:find(MARK, 1, true)
    before[index] = first and text:sub(1, first - 1) or text
    after[index] = first and text:sub(last + 1)
  end
  if settle > 0 then
    response = function()
      answers = answers + 1
      last_us = now_us()
      if answers == settle then settled_us = last_us end
    end
  end
end

function request()
  turn = turn % count + 1
  if not after[turn] then return before[turn] end
  seed = seed + 1
  return before[turn] .. string.format("%d", seed) .. after[turn]
end

function done(summary, latency)
  local errors, thread = summary.errors, threads[1]
  local settled = thread:get("settled_us")
  io.write(string.format(
    "\nRESULT answers=%d duration_us=%d bytes=%d refused=%d broken=%d timeouts=%d " ..
    "p50_us=%d p99_us=%d answers_seen=%d settled_for_us=%d\n",
    summary.requests, summary.duration, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(99),
    thread:get("answers"), settled > 0 and thread:get("last_us") - settled or 0))
end
