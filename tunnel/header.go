package tunnel

import (
	"crypto/tls"
	"fmt"
	"net"
	"regexp"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

// Custom types in the PROXY header, in the range for applications
// (PROXY protocol, 2.2: PP2_TYPE_MIN_CUSTOM to PP2_TYPE_MAX_CUSTOM).
const (
	// TypeDevice carries the device id.
	TypeDevice proxyproto.PP2Type = 0xE0
	// TypeFleet carries the name of its fleet.
	TypeFleet proxyproto.PP2Type = 0xE1
	// TypeSerial carries the serial number of its certificate, hex.
	TypeSerial proxyproto.PP2Type = 0xE2
)

// hostName is a name that a service may write into its log as it is (RFC 1123, 2.1).
var hostName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,253}$`)

// header is the PROXY protocol header, version 2: the device's address, what TLS
// negotiated, and the device's identity. The device was admitted, so its certificate
// counts as verified.
func header(c *edge.Conn, info countersign.Session) ([]byte, error) {
	state := c.ConnectionState()
	h := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(c.Remote), c.LocalAddr())
	ssl := tlvparse.PP2SSL{
		Client: tlvparse.PP2_BITFIELD_CLIENT_SSL | tlvparse.PP2_BITFIELD_CLIENT_CERT_CONN | tlvparse.PP2_BITFIELD_CLIENT_CERT_SESS,
		TLV: []proxyproto.TLV{
			{Type: proxyproto.PP2_SUBTYPE_SSL_VERSION, Value: []byte(versionName(state.Version))},
			{Type: proxyproto.PP2_SUBTYPE_SSL_CN, Value: []byte(info.Device)},
			{Type: proxyproto.PP2_SUBTYPE_SSL_CIPHER, Value: []byte(tls.CipherSuiteName(state.CipherSuite))},
		},
	}
	marshaled, err := ssl.Marshal()
	if err != nil {
		return nil, fmt.Errorf("couldn't describe the TLS connection: %w", err)
	}
	list := []proxyproto.TLV{
		{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: []byte(info.ID)},
		{Type: TypeDevice, Value: []byte(info.Device)},
		{Type: TypeFleet, Value: []byte(info.Fleet)},
		{Type: TypeSerial, Value: []byte(info.Cert.Serial)},
		marshaled,
	}
	if name := state.ServerName; hostName.MatchString(name) { // anything else that clients send there is not passed on
		list = append(list, proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte(name)})
	}
	if err := h.SetTLVs(list); err != nil {
		return nil, fmt.Errorf("couldn't write the PROXY header: %w", err)
	}
	return h.Format()
}

// versionName returns the version in haproxy's spelling: TLSv1.3.
func versionName(v uint16) string {
	switch v {
	case tls.VersionTLS13:
		return "TLSv1.3"
	case tls.VersionTLS12:
		return "TLSv1.2"
	}
	return tls.VersionName(v)
}
