package ra_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
	"github.com/countersign-iot/countersign/weakkey"
)

func TestEnrollRefusesAListedWeakKey(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		secret := w.token(t, registry.Credential{})
		// The form of openssl-blacklist: the last 20 hex digits of the SHA-1 of this line.
		sum := sha1.Sum(fmt.Appendf(nil, "Modulus=%X\n", key.N))
		w.CA.WeakKeys = &weakkey.Blocklist{}
		if err := w.CA.WeakKeys.Read(strings.NewReader("# listed\n" + hex.EncodeToString(sum[:])[20:] + "\n")); err != nil {
			t.Fatal(err)
		}
		_, err = w.Enroll(t.Context(), enrollment(t, key, "pump-1", secret))
		kit.WantCode(t, err, countersign.WeakKey)
	})
}
