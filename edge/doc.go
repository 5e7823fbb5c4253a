// Package edge is what every live connection of a device passes: the TLS
// listener with its deadlines and caps, the identity that TLS proved, the index
// of live sessions and the cut.
//
// It decides nothing. A gateway (package mqtt) registers a connection in the
// [Index], asks the Gatekeeper, and only then admits it; a [Index.Cut] that falls
// between the two is remembered and refuses the admission. That order is why a
// revocation which races a connect never slips through.
//
// A cut ends a session by closing the raw TCP socket here, never by asking an
// engine or a TLS connection to close: both can wait for a peer that has stopped
// reading, and such a peer would go on publishing meanwhile.
package edge
