package weakkey_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/weakkey"
)

// testKeys are the public halves of the keys of RFC 9500.
const testKeys = `-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCw0YNSqI9T1VFvRsIOejZ9feiK
z1SgGfbe9Xq5tEzt2yJCsbyg+xtcuCswNhdqY5A1ZN7G60HbL4/Hh/TlLhFJ4zNH
Vylz9mDDx3yp4IIcK2lb566dfTD0B5EQ9Iqub4twLUdLKQCBfyhmJJvsEqKxm4J4
QWgI+Brh/Pm3d4piPwIDAQAB
-----END PUBLIC KEY-----
-----BEGIN RSA PUBLIC KEY-----
MIICCgKCAgEAs4tJYOY75qjbqJqCl47x9jJE5Vd9jPWGFtXKV1nUnMjZNsM4qjy5
sRHBSX5bUa9pLyYR5on3Z1SAwLD0w2VPQ6+F/oyK1zTgQqitoF/XZQjgC6D3VsNE
O76DPqfRANT7Nn7r1gvbZIZ3/H3rlCRNrRr47tHGWBLAPnxz9/NY6UG8ZkWP97uX
pJqYoRgH4CwaO5rTOlc64YDh/0Mq5VgMycq/q2AvMlvNoJfoe8em1040qH1gikP+
suT/8fS452hqmEddtRpuvQgXKldBd0kkiyFVyLkG4NVA6Mso9MAK3J/kdYoaw2Sr
OeThVSiYVEQVP+7GrUxTSLLjj/VQ9fpYM5eTNzDICIG/Ee7o/jhtW1EoSamDmUOr
89lyIHaXuOwkEaJhnVXKBCM8WiztxvKG2CnQ6Dcge3ZSmqJEhyEmjcAVC7ewfnMx
OnE+WJW6rzrf+mA5WMVn+FzyWx2AondWow0aUKHkaY7amhIrsKp6YPfNImyxFlz8
+cqDCmBswPsUh/JJ5eDHHIhibFcSgIHedsEjhLbUSLZ/DnEjru90qIWWA3R1VIPy
kKfeZkZeInsrFzGPikkFKwFF+6KDdyvCmltYEqzO46tigXAZ5UgH8oiXEre48wO6
X+FH+cLzQ0q3A8HZRnNDgqCjU/Tgy76iaku/Ic6eteedR1fX3gJ/IOUCAwEAAQ==
-----END RSA PUBLIC KEY-----
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEQiVI+I+3gv+17KN0RFLHKh5Vj71v
c75eSOkyMsxFxbFsTNEMTLjVuKFxOelIgsiZJXKZNCX0FBmrfpCkKklCcg==
-----END PUBLIC KEY-----
-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEWwkBuIUjKW65GdUP+hqcs3S8TUCVhigr
/soRsdla27VHNK9XC/grcijPImvPTCXdvP47GjrTlDDv92Ph1o0uFR2Rcgt3lbWN
prNGOWE6j7m1qNpIxnRxF/mRnoQk837I
-----END PUBLIC KEY-----
-----BEGIN PUBLIC KEY-----
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQB0P1yV6hMdH9WJXXAc4Xb6/L1K+pY
CD24L90VMdiq48yHX/Av9/otomDY62LW0vXWSSeOMhc2oGKMu7MDCLbmGNsA9irS
BMZGA1m8gYq4lhvw8PwOxaropCgXPOVvAN6bFXweXILGT1Yvyt78Skwo9tNCzz72
FvyC0ztyhckh8r82/dg=
-----END PUBLIC KEY-----
-----BEGIN RSA PUBLIC KEY-----
MIIBCgKCAQEAsPnoGUOnrpiSqt4XynxA+HRP7S+BSObI6qJ7fQAVSPtRkqsotWxQ
YLEYzNEx5ZSHTGypibVsJylvCfuToDTfMul8b/CZjP2Ob0LdpYrNH6l5hvFE89FU
1nZQF15oVLOpUgA7wGiHuEVawrGfey92UE68mOyUVXGweJIVDdxqdMoPvNNUl86B
U02vlBiESxOuox+dWmuVV7vfYZ79Toh/LUK43YvJh+rhv4nKuF7iHjVjBd9sB6iD
jj70HFldzOQ9r8SRI+9NirupPTkF5AKNe6kUhKJ1luB7S27ZkvB3tSTT3P593VVJ
vnzOjaA1z6Cz+4+eRvcysqhrRgFlwI9TEwIDAQAB
-----END RSA PUBLIC KEY-----
`

// rfc9500 parses them.
func rfc9500(t *testing.T) []crypto.PublicKey {
	t.Helper()
	var keys []crypto.PublicKey
	for rest := []byte(testKeys); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		key, err := x509.ParsePKIXPublicKey(b.Bytes)
		if b.Type == "RSA PUBLIC KEY" {
			key, err = x509.ParsePKCS1PublicKey(b.Bytes)
		}
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return keys
}

func TestCheckRefusesPublishedKeys(t *testing.T) {
	keys := rfc9500(t)
	if len(keys) != 6 {
		t.Fatalf("got %d keys of RFC 9500, want 6", len(keys))
	}
	for _, k := range keys {
		switch k := k.(type) {
		case *rsa.PublicKey:
			keys = append(keys, &rsa.PublicKey{N: k.N, E: 3})
		case *ecdsa.PublicKey:
			keys = append(keys, point(k.Curve, k.X, new(big.Int).Sub(k.Curve.Params().P, k.Y))) //nolint:staticcheck // the new ways make no negative
		}
	}
	server := httptest.NewTLSServer(nil)
	keys = append(keys, server.Certificate().PublicKey)
	server.Close()
	seed, err := hex.DecodeString("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60") // RFC 8032, 7.1
	if err != nil {
		t.Fatal(err)
	}
	keys = append(keys, ed25519.NewKeyFromSeed(seed).Public())
	for i, k := range keys {
		err := weakkey.Check(k)
		if countersign.CodeOf(err) != countersign.WeakKey || !strings.Contains(err.Error(), "published in ") {
			t.Errorf("key %d, %T: got %v, want a weak key and where it is published", i, k, err)
		}
		var list *weakkey.Blocklist
		if err := list.Check(k); countersign.CodeOf(err) != countersign.WeakKey {
			t.Errorf("key %d, %T, without a list: got %v, want a weak key", i, k, err)
		}
	}
}
