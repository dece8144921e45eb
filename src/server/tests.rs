//! HTTP end to end without a socket.
