package edge

import "crypto/tls"

// TLSConfig is the server side of a device listener: TLS 1.3 preferred, 1.2 with
// forward-secret AEAD suites as the floor, hybrid post-quantum key exchange
// first. certificate is called in every handshake, so a new server certificate
// takes effect without touching live sessions.
//
// The client certificate is requested, not required, and not verified here: TLS
// proves possession of its key, the Gatekeeper decides on the chain, and the
// refusal can then be sent with its reason in the application protocol. Session tickets are off,
// because a resumed session would carry an identity decided earlier.
func TLSConfig(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: certificate,
		ClientAuth:     tls.RequestClientCert,
		CipherSuites: []uint16{ // of TLS 1.2 (RFC 5246) only; those of 1.3 are all AEAD
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
		SessionTicketsDisabled: true,
	}
}
