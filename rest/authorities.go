package rest

import (
	"context"
	"encoding/pem"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/provision"
)

// maxCABody bounds what an external authority brings: a manufacturer's revocation
// list of 100,000 entries is 4 MiB, and base64 makes it 5.
const maxCABody = 8 << 20

// authorities serves our authorities, and those of manufacturers that are registered.
type authorities struct {
	ca          *ca.CA
	provisioner *provision.Provisioner
}

func (a *authorities) list(_ context.Context, in *api.Paging) (api.Page[api.Authority], error) {
	return cutPage(each(a.ca.Authorities(), shapeAuthority), *in, authorityKey), nil
}

// authorityKey puts roots before what hangs on them.
func authorityKey(a api.Authority) string {
	if a.Parent == "" {
		return "0/" + a.ID
	}
	return "1/" + a.ID
}

func (a *authorities) get(_ context.Context, in *struct {
	ID string `path:"id" maxLength:"63"`
},
) (api.Authority, error) {
	return as(shapeAuthority)(a.ca.Authority(in.ID))
}

func (a *authorities) code(ctx context.Context, _ *struct{}) (api.RegistrationCode, error) {
	code, until, err := a.provisioner.RegistrationCode(ctx, byOf(ctx))
	return api.RegistrationCode{Code: code, ExpiresAt: until.UTC()}, err
}

func (a *authorities) register(ctx context.Context, in *body[api.NewAuthority]) (api.Authority, error) {
	b := in.Body
	g := ca.Registration{ID: b.ID, CRLs: derLists(b.CRLs), RequireCRL: b.RequireCRL, Legacy: b.Legacy, Override: b.Override, Reason: b.Reason}
	switch {
	case b.Override && b.Reason == "":
		return api.Authority{}, countersign.Errorf(countersign.BadRequest, "an override needs a reason").WithNext("say why the authority cannot prove that it has its key")
	case b.Override && b.Verification != "":
		return api.Authority{}, countersign.Errorf(countersign.BadRequest, "a verification certificate and an override were given").WithNext("give one of them")
	}
	var err error
	if g.Certificate, err = oneCertificate("certificate", b.Certificate); err != nil {
		return api.Authority{}, err
	}
	if b.Verification != "" {
		if g.Verification, err = oneCertificate("verification", b.Verification); err != nil {
			return api.Authority{}, err
		}
	}
	for _, text := range b.Intermediates {
		more, err := certificatesOf("intermediates", text)
		if err != nil {
			return api.Authority{}, err
		}
		g.Intermediates = append(g.Intermediates, more...)
	}
	return as(shapeAuthority)(a.provisioner.RegisterAuthority(ctx, g, byOf(ctx)))
}

func (a *authorities) putCRLs(ctx context.Context, in *struct {
	ID   string `path:"id" maxLength:"63"`
	Body api.PutCRLs
},
) (api.Authority, error) {
	if in.Body.Override != (in.Body.Reason != "") {
		return api.Authority{}, countersign.Errorf(countersign.BadRequest, "an override needs a reason, and a reason an override").
			WithNext("say why lists that are older may take the place of newer ones")
	}
	l := ca.Lists{CRLs: derLists(in.Body.CRLs), Override: in.Body.Override}
	for _, text := range in.Body.Intermediates {
		more, err := certificatesOf("intermediates", text)
		if err != nil {
			return api.Authority{}, err
		}
		l.Intermediates = append(l.Intermediates, more...)
	}
	if err := a.provisioner.SetCRLs(ctx, in.ID, l, in.Body.Reason, byOf(ctx)); err != nil {
		return api.Authority{}, err
	}
	return as(shapeAuthority)(a.ca.Authority(in.ID))
}

// derLists takes lists in DER or PEM. One that is neither is found out by its reader.
func derLists(lists [][]byte) [][]byte {
	var out [][]byte
	for _, l := range lists {
		if block, _ := pem.Decode(l); block != nil {
			l = block.Bytes
		}
		out = append(out, l)
	}
	return out
}

// certificatesOf returns the DER of the certificates in a PEM text.
func certificatesOf(field, text string) ([][]byte, error) {
	var out [][]byte
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, countersign.Errorf(countersign.BadRequest, "%s holds a %.40q", field, block.Type).WithNext("give certificates in PEM")
		}
		out = append(out, block.Bytes)
	}
	if len(out) == 0 {
		return nil, countersign.Errorf(countersign.BadRequest, "%s holds no certificate in PEM", field).WithNext("convert it with: openssl x509 -in FILE -inform DER")
	}
	return out, nil
}

func oneCertificate(field, text string) ([]byte, error) {
	list, err := certificatesOf(field, text)
	if err != nil {
		return nil, err
	}
	if len(list) > 1 {
		return nil, countersign.Errorf(countersign.BadRequest, "%s holds %d certificates", field, len(list)).WithNext("give one; others are intermediates")
	}
	return list[0], nil
}
