// Package edge has what every live connection of a device passes through: the TLS
// listener with its deadlines and caps, the identity that TLS proved, the index
// of live sessions and the cut.
//
// It decides nothing. A gateway (package mqtt) registers a connection in the
// [Index], asks the Gatekeeper, and only then admits it; a [Index.Cut] that falls
// between the two is kept and refuses the admission. Because of that order a
// revocation that races a connect is never missed.
//
// A cut ends a session by closing the raw TCP socket here, never by asking an
// engine or a TLS connection to close: both can wait for a peer that has stopped
// reading, and such a peer would continue to publish meanwhile.
package edge
