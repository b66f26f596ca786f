-- wrk: sends the requests that lie in a folder in turn, and prints what came back as one line of JSON.
local requests, at = {}, 0

function init(args)
   for index = 0, tonumber(args[2]) - 1 do
      local file = assert(io.open(args[1] .. "/" .. index, "rb"))
      requests[index + 1] = file:read("*a")
      file:close()
   end
end

function request()
   at = at % #requests + 1
   return requests[at]
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format('{"requests": %d, "seconds": %.6f, "p50_s": %.6f, "p99_s": %.6f, "failed": %d, "broken": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
