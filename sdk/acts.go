package sdk

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/countersign-iot/countersign/api"
)

// Device gets one device.
func (a *Admin) Device(ctx context.Context, id string) (*api.Device, error) {
	return get[api.Device](ctx, a, devicePath(id, ""))
}

// CreateDevice registers a device before it enrolls.
func (a *Admin) CreateDevice(ctx context.Context, d api.NewDevice) (*api.Device, error) {
	return post[api.Device](ctx, a, "/devices", d)
}

// EditDevice changes owner, purpose, tags or fleet of a device.
func (a *Admin) EditDevice(ctx context.Context, id string, e api.EditDevice) (*api.EditedDevice, error) {
	return call[api.EditedDevice](ctx, a, http.MethodPatch, devicePath(id, ""), e)
}

// Disconnect ends the live sessions of a device on every node. It may come back.
func (a *Admin) Disconnect(ctx context.Context, id string, act api.Act) (*api.Disconnected, error) {
	return post[api.Disconnected](ctx, a, devicePath(id, "/disconnect"), act)
}

// Purge drops what the node that answers stores for a device. Live sessions go on.
func (a *Admin) Purge(ctx context.Context, id string, p api.Purge) (*api.Purged, error) {
	return post[api.Purged](ctx, a, devicePath(id, "/purge"), p)
}

// DisconnectSession ends one live session, on whichever node it is.
func (a *Admin) DisconnectSession(ctx context.Context, session string, act api.Act) (*api.Disconnected, error) {
	return post[api.Disconnected](ctx, a, "/sessions/"+segment(session)+"/disconnect", act)
}

// PatchRules changes some of a fleet's rules: change is a JSON merge patch (RFC 7396)
// of api.Rules. With dry nothing is changed, and the fleet is as it would be.
func (a *Admin) PatchRules(ctx context.Context, fleet string, change json.RawMessage, dry bool) (*api.Fleet, error) {
	path := "/fleets/" + segment(fleet) + "/rules"
	if dry {
		path += "?dry_run=true"
	}
	return call[api.Fleet](ctx, a, http.MethodPatch, path, change)
}

// RetryHold has the node record the act of one of its emergency holds now.
func (a *Admin) RetryHold(ctx context.Context, id string) (*api.Hold, error) {
	return post[api.Hold](ctx, a, "/holds/"+segment(id)+"/retry", nil)
}

// DropHold ends one of the node's emergency holds without recording its act.
func (a *Admin) DropHold(ctx context.Context, id string) (*api.Hold, error) {
	return post[api.Hold](ctx, a, "/holds/"+segment(id)+"/drop", nil)
}

// Suspend puts a device's identity on hold and cuts its sessions.
func (a *Admin) Suspend(ctx context.Context, id string, act api.Act) (*api.Cut, error) {
	return post[api.Cut](ctx, a, devicePath(id, "/suspend"), act)
}

// Reactivate ends a suspension.
func (a *Admin) Reactivate(ctx context.Context, id string, act api.Act) (*api.Device, error) {
	return post[api.Device](ctx, a, devicePath(id, "/reactivate"), act)
}

// Revoke takes all certificates of a device away for good and cuts its sessions.
func (a *Admin) Revoke(ctx context.Context, id string, r api.Revoke) (*api.Cut, error) {
	return post[api.Cut](ctx, a, devicePath(id, "/revoke"), r)
}

// Retire ends a device's life: as Revoke, and its id stays taken.
func (a *Admin) Retire(ctx context.Context, id string, act api.Act) (*api.Cut, error) {
	return post[api.Cut](ctx, a, devicePath(id, "/retire"), act)
}

// Block refuses an address or a network for a time.
func (a *Admin) Block(ctx context.Context, b api.NewBlock) (*api.Block, error) {
	return post[api.Block](ctx, a, "/blocks", b)
}

// Unblock ends the block of a network, or of an address, at once.
func (a *Admin) Unblock(ctx context.Context, network string) (*api.Block, error) {
	return call[api.Block](ctx, a, http.MethodDelete, "/blocks/"+segment(strings.ReplaceAll(network, "/", "_")), nil)
}

func devicePath(id, act string) string { return "/devices/" + segment(id) + act }

// Certificate gets one certificate with its PEM. name is its serial number, or its issuer,
// a slash and its serial number where several issuers gave that one.
func (a *Admin) Certificate(ctx context.Context, name string) (*api.Certificate, error) {
	return get[api.Certificate](ctx, a, certificatePath(name, ""))
}

// certificatePath is the path of an act on a certificate; see Certificate.
func certificatePath(name, act string) string {
	i := strings.LastIndexByte(name, '/')
	path := "/certificates/" + segment(name[i+1:]) + act
	if i > 0 {
		path += "?issuer=" + url.QueryEscape(name[:i])
	}
	return path
}

// RevokeCertificate takes one certificate away for good and cuts the sessions
// that rest on it. It is named as for Certificate.
func (a *Admin) RevokeCertificate(ctx context.Context, name string, r api.Revoke) (*api.Cut, error) {
	return post[api.Cut](ctx, a, certificatePath(name, "/revoke"), r)
}

// Authority gets one authority.
func (a *Admin) Authority(ctx context.Context, id string) (*api.Authority, error) {
	return get[api.Authority](ctx, a, "/authorities/"+segment(id))
}

// Fleet gets one fleet.
func (a *Admin) Fleet(ctx context.Context, name string) (*api.Fleet, error) {
	return get[api.Fleet](ctx, a, "/fleets/"+segment(name))
}

// PutFleet creates or changes a fleet.
func (a *Admin) PutFleet(ctx context.Context, name string, f api.PutFleet) (*api.Fleet, error) {
	return call[api.Fleet](ctx, a, http.MethodPut, "/fleets/"+segment(name), f)
}

// Profile gets one profile.
func (a *Admin) Profile(ctx context.Context, name string) (*api.Profile, error) {
	return get[api.Profile](ctx, a, "/profiles/"+segment(name))
}

// PutProfile creates or replaces a profile. The server lints a sample first.
func (a *Admin) PutProfile(ctx context.Context, p api.Profile) (*api.Profile, error) {
	return call[api.Profile](ctx, a, http.MethodPut, "/profiles/"+segment(p.Name), p)
}

// CreateOperatorToken makes an operator token. The answer is the only one that
// holds its secret.
func (a *Admin) CreateOperatorToken(ctx context.Context, t api.NewOperatorToken) (*api.IssuedOperatorToken, error) {
	return post[api.IssuedOperatorToken](ctx, a, "/operator-tokens", t)
}

// RevokeOperatorToken ends an operator token at once.
func (a *Admin) RevokeOperatorToken(ctx context.Context, id string) (*api.OperatorToken, error) {
	return post[api.OperatorToken](ctx, a, "/operator-tokens/"+segment(id)+"/revoke", nil)
}

// VerifyLog checks the hash chain of the whole log.
func (a *Admin) VerifyLog(ctx context.Context) (*api.Verification, error) {
	return post[api.Verification](ctx, a, "/audit/verify", nil)
}

// Health asks whether the server does its work.
func (a *Admin) Health(ctx context.Context) (*api.Health, error) {
	return get[api.Health](ctx, a, "/health")
}

// Version asks what runs.
func (a *Admin) Version(ctx context.Context) (*api.Version, error) {
	return get[api.Version](ctx, a, "/version")
}

// Doctor has the server check itself.
func (a *Admin) Doctor(ctx context.Context) (*api.Doctor, error) {
	return get[api.Doctor](ctx, a, "/doctor")
}
