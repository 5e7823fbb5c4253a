package ca_test

import (
	"testing"

	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// BenchmarkIssue measures what a request costs in this package before its certificate is
// recorded: the key is checked and hashed, the certificate planned and signed.
func BenchmarkIssue(b *testing.B) {
	h := found(b, storetest.Open(b))
	o := h.order(b, ca.ProfileDevice, "pump-1")
	b.ReportAllocs()
	for b.Loop() {
		kit.Must(h.AcceptKey(o.PublicKey))
		kit.Must(ca.KeyHash(o.PublicKey))
		kit.Must(h.Sign(kit.Must(h.Plan(b.Context(), o))))
	}
}
