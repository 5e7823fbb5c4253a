package sdk

import (
	"context"
	"iter"
	"maps"
	"net/url"
	"reflect"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign/api"
)

// Devices lists devices by id. It pages by itself, as all lists do, and ends
// after the first error.
func (a *Admin) Devices(ctx context.Context, f api.DeviceFilter) iter.Seq2[api.Device, error] {
	return list[api.Device](ctx, a, "/devices", query(f))
}

// DeviceEvents lists the events of one device.
func (a *Admin) DeviceEvents(ctx context.Context, id string, o api.Order) iter.Seq2[api.Event, error] {
	return list[api.Event](ctx, a, "/devices/"+segment(id)+"/events", query(o))
}

// Events lists the log.
func (a *Admin) Events(ctx context.Context, f api.EventFilter, o api.Order) iter.Seq2[api.Event, error] {
	return list[api.Event](ctx, a, "/events", query(f, o))
}

// Certificates lists certificates without their PEM: by serial, or by the end of their
// validity where the filter names a state or such an end and no device.
func (a *Admin) Certificates(ctx context.Context, f api.CertificateFilter) iter.Seq2[api.Certificate, error] {
	return list[api.Certificate](ctx, a, "/certificates", query(f))
}

// Sessions lists the live connections on the node that answers.
func (a *Admin) Sessions(ctx context.Context, f api.SessionFilter) iter.Seq2[api.Session, error] {
	return list[api.Session](ctx, a, "/sessions", query(f))
}

// Usage lists what devices use of the node that answers and of its message store, those
// with the most octets first.
func (a *Admin) Usage(ctx context.Context, f api.UsageFilter) iter.Seq2[api.Usage, error] {
	return list[api.Usage](ctx, a, "/usage", query(f))
}

// Holds lists the emergency holds of the node that answers, by id.
func (a *Admin) Holds(ctx context.Context) iter.Seq2[api.Hold, error] {
	return list[api.Hold](ctx, a, "/holds", query())
}

// Blocks lists the addresses that are blocked, by network.
func (a *Admin) Blocks(ctx context.Context) iter.Seq2[api.Block, error] {
	return list[api.Block](ctx, a, "/blocks", query())
}

// Credentials lists what earns a first certificate, newest first, without secrets.
func (a *Admin) Credentials(ctx context.Context, f api.CredentialFilter) iter.Seq2[api.Credential, error] {
	return list[api.Credential](ctx, a, "/credentials", query(f))
}

// Tokens lists enrollment tokens, newest first, without their secrets.
func (a *Admin) Tokens(ctx context.Context) iter.Seq2[api.Credential, error] {
	return list[api.Credential](ctx, a, "/tokens", query())
}

// Enrollments lists enrollments that wait for an operator, or did, oldest first.
func (a *Admin) Enrollments(ctx context.Context, f api.WaitingFilter) iter.Seq2[api.Waiting, error] {
	return list[api.Waiting](ctx, a, "/enrollments", query(f))
}

// Authorities lists the authorities, parents first.
func (a *Admin) Authorities(ctx context.Context) iter.Seq2[api.Authority, error] {
	return list[api.Authority](ctx, a, "/authorities", query())
}

// Fleets lists fleets by name.
func (a *Admin) Fleets(ctx context.Context) iter.Seq2[api.Fleet, error] {
	return list[api.Fleet](ctx, a, "/fleets", query())
}

// Profiles lists profiles by name.
func (a *Admin) Profiles(ctx context.Context) iter.Seq2[api.Profile, error] {
	return list[api.Profile](ctx, a, "/profiles", query())
}

// OperatorTokens lists operator tokens, without their secrets.
func (a *Admin) OperatorTokens(ctx context.Context) iter.Seq2[api.OperatorToken, error] {
	return list[api.OperatorToken](ctx, a, "/operator-tokens", query())
}

// list walks the pages of path. A caller that stops early asks for no more.
func list[T any](ctx context.Context, a *Admin, path string, q url.Values) iter.Seq2[T, error] {
	size := api.MaxLimit
	if a.PageSize > 0 {
		size = min(a.PageSize, api.MaxLimit)
	}
	q.Set("limit", strconv.Itoa(size))
	return func(yield func(T, error) bool) {
		q := maps.Clone(q) // the caller may walk the list again
		for {
			page, err := get[api.Page[T]](ctx, a, path+"?"+q.Encode())
			if err != nil {
				yield(*new(T), err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.Set("after", page.Next)
		}
	}
}

// query writes the fields of the filters that are not zero under their query
// tags, so that a filter's names are in package api alone.
func query(filters ...any) url.Values {
	q := url.Values{}
	for _, f := range filters {
		v := reflect.ValueOf(f)
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("query")
			switch x := v.Field(i).Interface().(type) {
			case string:
				if x != "" {
					q.Set(name, x)
				}
			case time.Time:
				if !x.IsZero() {
					q.Set(name, x.UTC().Format(time.RFC3339Nano))
				}
			}
		}
	}
	return q
}
