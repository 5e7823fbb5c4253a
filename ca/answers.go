package ca

import (
	"crypto"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxGoodOctets and maxWithdrawnOctets bound the answers that are kept, some 1.2
	// KB each: 25,000 about certificates that are good and 6,000 about others. They
	// are apart because the serials of revoked certificates are public in the CRL:
	// a client that asks about all of them must not push out the answers about devices
	// that are in use. A miss costs one read and one signature.
	maxGoodOctets      = 32 << 20
	maxWithdrawnOctets = 8 << 20
	// ocspFresh is how long after its signature an answer is returned again.
	ocspFresh = 10 * time.Minute
	// answerOverhead is what the map, the key and the times of an answer take beside it.
	answerOverhead = 400
	// maxCertID bounds the CertID of an answer that is kept: 64 octets for each hash,
	// 20 for the serial and 30 around them.
	maxCertID = 256
)

// answerKey is what an answer hangs on: the certificate, and the form in which its
// CertID names it. There are few forms, so a client cannot fill the cache with
// answers about one certificate.
type answerKey struct {
	ref  countersign.CertRef
	form idForm
}

// idForm is how a CertID writes the hash algorithm.
type idForm struct {
	hash crypto.Hash
	null bool // with the parameters NULL, as most clients write them, or without
}

// idForms are all that issuerNames matches.
var idForms = []idForm{{crypto.SHA1, false}, {crypto.SHA1, true}, {crypto.SHA256, false}, {crypto.SHA256, true}}

// keyOf returns the key of an answer about a certificate; false if it is not to be
// kept, because the CertID has a form that no client needs.
func keyOf(issuer string, id countersign.CertID) (answerKey, bool) {
	k := answerKey{countersign.CertRef{Issuer: issuer, Serial: id.Serial}, idForm{id.Hash, id.NullParameters}}
	return k, id.Serial != "" && len(id.DER) <= maxCertID
}

// kept is a signed answer.
type kept struct {
	countersign.OCSPAnswer
	id     string // the CertID that it repeats
	signed time.Time
	status countersign.CertStatus
}

func (k *kept) octets() int { return len(k.DER) + len(k.id) + answerOverhead }

// answers keeps signed answers, by their status. One that is unknown is not kept: a client
// can ask for any number of serials that there are not.
type answers struct {
	mu      sync.Mutex
	pools   map[countersign.CertStatus]*answerPool
	changes uint64 // counts forgets, so that an answer computed across one is not kept
}

func newAnswers() *answers {
	return &answers{pools: map[countersign.CertStatus]*answerPool{
		countersign.StatusGood: {limit: maxGoodOctets}, countersign.StatusRevoked: {limit: maxWithdrawnOctets},
	}}
}

// answerPool has two generations. When the young one is full it becomes the old one;
// what is asked for again moves back, and the rest goes with the next change.
type answerPool struct {
	young, old map[answerKey]kept
	octets     int // of the young ones
	limit      int // of both
}

func (p *answerPool) get(k answerKey) (kept, bool) {
	if a, ok := p.young[k]; ok {
		return a, true
	}
	a, ok := p.old[k]
	if ok {
		delete(p.old, k)
		p.put(k, a)
	}
	return a, ok
}

func (p *answerPool) put(k answerKey, a kept) {
	if before, ok := p.young[k]; ok {
		p.octets -= before.octets()
	}
	if p.young == nil || p.octets+a.octets() > p.limit/2 {
		p.young, p.old, p.octets = map[answerKey]kept{}, p.young, 0
	}
	p.young[k] = a
	p.octets += a.octets()
}

func (p *answerPool) forget(k answerKey) {
	if a, ok := p.young[k]; ok {
		p.octets -= a.octets()
		delete(p.young, k)
	}
	delete(p.old, k)
}

func (s *answers) epoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes
}

func (s *answers) get(k answerKey, id []byte, now time.Time) (answer countersign.OCSPAnswer, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		if a, found := p.get(k); found && a.id == string(id) && now.Sub(a.signed).Abs() <= ocspFresh {
			return a.OCSPAnswer, true
		}
	}
	return answer, false
}

// put keeps an answer that was computed since that epoch.
func (s *answers) put(k answerKey, a kept, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pools[a.status]; p != nil && s.changes == epoch {
		p.put(k, a)
	}
}

func (s *answers) forget(ref countersign.CertRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	for _, form := range idForms {
		for _, p := range s.pools {
			p.forget(answerKey{ref, form})
		}
	}
}

// forgetAfter forgets once the change is durable.
func (s *answers) forgetAfter(tx *store.Tx, ref countersign.CertRef) {
	tx.AfterCommit(func() { s.forget(ref) })
}
