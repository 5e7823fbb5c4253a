package mqtt

import "context"

// back carries the messages of one admitted session: [local] in the broker core of this
// process, [remote] in a foreign broker.
type back interface {
	// open has the back take the session, and returns the CONNACK for the client.
	open(ctx context.Context) (*connack, error)
	// start begins what comes down. CONNACK was sent before.
	start()
	// publish passes on what the permissions allow. The frame and p share memory that is
	// valid until it returns.
	publish(f frame, p publish, topic string) error
	// refuse acknowledges a PUBLISH of QoS 1 or 2 that is dropped, with code, in its turn.
	refuse(p publish, code Reason) error
	acknowledge(f frame, a ack) error
	// subscribe passes on a SUBSCRIBE or UNSUBSCRIBE. The codes of filters that were
	// refused are in codes, the others are fromBack. It sees to the answer.
	subscribe(ctx context.Context, f frame, p *subscribe, codes []byte) error
	ping(f frame) error
	leave(f frame, d disconnect) error
	// flush passes on what was gathered.
	flush() error
	// close ends the back's side of the session after its end.
	close(ctx context.Context)
	// abandon ends a session that did not begin, wherever open came to. Its will is not
	// published.
	abandon()
}

// fromBack marks a filter that the back answers for. It is no reason code.
const fromBack = 0xFF
