-- Run by wrk: send the bodies in turn, end with one line of JSON (times in microseconds).
-- BENCH_BODIES names a file of records, "LENGTH\nBYTES"; BENCH_HEADERS has one header per line. The
-- API key is among them, which is why they are not on the command line.

local requests, index = {}, 0

local function headers()
   local result = {}
   for name, value in os.getenv("BENCH_HEADERS"):gmatch("([^\n:]+): ([^\n]*)") do
      result[name] = value
   end
   return result
end

function init(args)
   local file = assert(io.open(os.getenv("BENCH_BODIES"), "rb"))
   local request_headers = headers()
   while true do
      local length = file:read("*n", 1)
      if not length then break end
      requests[#requests + 1] = wrk.format("POST", nil, request_headers, file:read(length))
   end
   file:close()
end

function request()
   index = index % #requests + 1
   return requests[index]
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "duration_us": %d, "refused": %d, "broken": %d, '
         .. '"p50_us": %d, "p95_us": %d, "p99_us": %d}\n',
      summary.requests, summary.duration, errors.status,
      errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
