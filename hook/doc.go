// Package hook authenticates and authorizes clients of external brokers and proxies,
// and makes the brokers disconnect them.
//
// EMQX, RabbitMQ, VerneMQ, nginx, Envoy, and any program that uses the generic JSON
// API, ask over HTTP: [Server] is the handler. NATS asks over NATS: [Callout] answers
// there. Each question about a client that connects becomes one
// [countersign.Connection] and is decided by the [countersign.Gatekeeper]. Later
// questions about topics are answered from the permissions in that verdict.
//
// A broker keeps a session open when its device loses its identity. Therefore
// [Kicker] receives each such event and makes the broker end the sessions, repeatedly
// until the broker reports none. Mosquitto asks no server; it reads the current CRL
// from [CRLFile] instead.
//
// A caller must be a configured [Hook] and prove it by its secret, its certificate or
// its address. Any failure is answered with the refusal of the protocol.
package hook
