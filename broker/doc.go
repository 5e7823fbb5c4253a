// Package broker is the MQTT broker core of one node: topics, sessions, queues,
// retained messages, wills and shared subscriptions (MQTT 5 and 3.1.1, section 4).
// It knows no packet and no socket: a gateway decodes what a client sends, asks the
// core, and encodes what the core delivers. It decides nothing about devices; who may
// publish or receive is judged by the gateway before, and by [Client.Deliver].
//
// A session that outlives its connection is kept: its subscriptions, its queue and the
// packet identifiers of QoS 2 are rows, and so are retained messages. What concerns them
// is answered after its commit: PUBACK, PUBREC, PUBCOMP and SUBACK. Everything else is
// in memory and answered at once. One goroutine, the journal, writes what waits as one
// transaction; another delivers what was committed, in the order of the commits. So
// messages of one publisher keep their order (MQTT 5, 4.6).
//
// A kept session's queue is read from its rows as its client takes it: a session
// without a client costs its subscriptions and two counters.
package broker
