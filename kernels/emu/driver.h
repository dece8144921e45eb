// What the stand-in for the driver has for a library on top of it.
#pragma once
#include <cstddef>
#include <functional>
#include <string>

namespace driver {

#pragma GCC visibility push(default)

/// Whether the calling thread has entered the context, and nothing has failed in it.
bool entered();
/// Whether these bytes are of one buffer.
bool holds(const void* at, size_t bytes);
/// Queues work behind what is on the stream; also into a capture. What it says is whether it went well.
bool queue(void* stream, std::function<bool()> work);
/// For work that did not: false, and what the driver says of it.
bool fail(const std::string& what);
/// Counts an object among those that must be given back, and no longer; whether it is there.
void keep(void* handle);
bool keeps(const void* handle);
bool forget(void* handle);

#pragma GCC visibility pop

}  // namespace driver
