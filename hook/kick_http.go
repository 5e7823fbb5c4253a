package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

const (
	// maxAnswer bounds what a broker's API may answer.
	maxAnswer = 4 << 20
	// pageSize and maxPages bound the search for a device's sessions.
	pageSize = 100
	maxPages = 10
)

// API is how a broker's management API is reached.
type API struct {
	URL    string // without the path that the broker's documentation has
	User   string // of Basic; empty: Secret is sent as Bearer
	Secret []byte
	Client *http.Client // has the roots that the broker's certificate chains to
}

// call makes one call. A deletion of what does not exist is a success.
func (a *API) call(ctx context.Context, method, path string, body, into any) error {
	var reader io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, a.URL+path, reader)
	if err != nil {
		return errors.New("couldn't make the request to the broker's API") // the error would show the URL
	}
	r.Header.Set("Accept", "application/json")
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	switch {
	case a.User != "":
		r.SetBasicAuth(a.User, string(a.Secret))
	case len(a.Secret) > 0:
		r.Header.Set("Authorization", "Bearer "+string(a.Secret))
	}
	resp, err := a.Client.Do(r)
	if err != nil {
		return fmt.Errorf("couldn't reach the broker's API: %w", cause(err))
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("couldn't read the broker's answer: %w", err)
	}
	gone := method == http.MethodDelete && resp.StatusCode == http.StatusNotFound
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent && !gone {
		return fmt.Errorf("the broker's API answered %d", resp.StatusCode)
	}
	if into != nil && resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, into); err != nil {
			return errors.New("couldn't read the broker's answer: not the JSON that its documentation shows")
		}
	}
	return nil
}

// cause returns err without the URL, which may contain what must not be logged.
func cause(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// search finds the connected clients that have a client id, or, where byUser is set, a
// user name.
type search func(ctx context.Context, byUser bool, value string) (ids []string, err error)

// kickFound returns a driver that ends the clients which find returns: by the known ids
// and names, and for a device that must not reconnect by its id in both fields.
func kickFound(hook string, find search, end func(ctx context.Context, id string) error) *Driver {
	return &Driver{Hook: hook, kick: func(ctx context.Context, t target) (int, error) {
		var ids []string
		add := func(byUser bool, value string) error {
			found, err := find(ctx, byUser, value)
			for _, id := range found {
				if !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
			return err
		}
		for _, id := range t.clients() {
			if err := add(false, id); err != nil {
				return 0, err
			}
		}
		if t.whole {
			if err := add(true, t.device); err != nil {
				return 0, err
			}
		}
		for _, id := range ids {
			if err := end(ctx, id); err != nil {
				return len(ids), err
			}
		}
		return len(ids), nil
	}}
}

// KickEMQX ends sessions over EMQX's REST API, with an API key as User and Secret.
func KickEMQX(hook string, a API) *Driver {
	return kickFound(hook, a.emqxClients, func(ctx context.Context, id string) error {
		return a.call(ctx, http.MethodDelete, "/api/v5/clients/"+url.PathEscape(id), nil, nil)
	})
}

func (a *API) emqxClients(ctx context.Context, byUser bool, value string) (ids []string, err error) {
	query := url.Values{"clientid": {value}}
	if byUser {
		query = url.Values{"username": {value}}
	}
	for page := 1; page <= maxPages; page++ {
		var out struct {
			Data []struct {
				ClientID  string `json:"clientid"`
				Connected bool   `json:"connected"`
			} `json:"data"`
		}
		query.Set("limit", strconv.Itoa(pageSize))
		query.Set("page", strconv.Itoa(page))
		if err := a.call(ctx, http.MethodGet, "/api/v5/clients?"+query.Encode(), nil, &out); err != nil {
			return ids, err
		}
		for _, c := range out.Data {
			if c.Connected {
				ids = append(ids, c.ClientID)
			}
		}
		if len(out.Data) < pageSize {
			break
		}
	}
	return ids, nil
}

// KickRabbitMQ ends connections over RabbitMQ's management API, as a user with the
// tag administrator.
func KickRabbitMQ(hook string, a API) *Driver {
	kick := func(ctx context.Context, t target) (int, error) {
		n := 0
		for _, user := range t.users() {
			path := "/api/connections/username/" + url.PathEscape(user)
			var list []json.RawMessage
			if err := a.call(ctx, http.MethodGet, path, nil, &list); err != nil {
				return n, err
			}
			if len(list) == 0 {
				continue
			}
			n += len(list)
			if err := a.call(ctx, http.MethodDelete, path, nil, nil); err != nil {
				return n, err
			}
		}
		return n, nil
	}
	return &Driver{Hook: hook, kick: kick}
}

// KickVerneMQ ends sessions over VerneMQ's HTTP API, with an API key as User and an
// empty Secret.
func KickVerneMQ(hook string, a API) *Driver {
	return kickFound(hook, a.verneClients, func(ctx context.Context, id string) error {
		return a.call(ctx, http.MethodGet, "/api/v1/session/disconnect?client-id="+url.QueryEscape(id)+"&--cleanup", nil, nil)
	})
}

func (a *API) verneClients(ctx context.Context, byUser bool, value string) (ids []string, err error) {
	field := "client_id"
	if byUser {
		field = "user"
	}
	var out struct {
		Table []struct {
			ClientID string `json:"client_id"`
		} `json:"table"`
	}
	err = a.call(ctx, http.MethodGet, "/api/v1/session/show?--client_id&--is_online=true&--"+field+"="+url.QueryEscape(value), nil, &out)
	for _, row := range out.Table {
		ids = append(ids, row.ClientID)
	}
	return ids, err
}

// KickRequest is what KickWebhook posts.
type KickRequest struct {
	Hook   string    `json:"hook"`
	Device string    `json:"device"`
	Fleet  string    `json:"fleet,omitempty"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"` // of the cut
	// ClientIDs and Usernames that the device is known to use there.
	ClientIDs []string `json:"client_ids"`
	Usernames []string `json:"usernames"`
	// Whole: end all sessions of the device. Otherwise those of ClientIDs alone.
	Whole bool `json:"whole"`
}

// KickAnswer is the answer of the service, with status 200: how many sessions it ended
// now. It is called again until that is none.
type KickAnswer struct {
	Ended int `json:"ended"`
}

// KickWebhook makes a service of the operator's end the sessions. Requests are posted to
// the URL as it is.
func KickWebhook(hook string, a API) *Driver {
	kick := func(ctx context.Context, t target) (int, error) {
		var out KickAnswer
		in := KickRequest{
			Hook: hook, Device: t.device, Fleet: t.fleet, Reason: t.reason, At: t.at,
			ClientIDs: t.clients(), Usernames: t.users(), Whole: t.whole,
		}
		err := a.call(ctx, http.MethodPost, "", in, &out)
		return max(out.Ended, 0), err
	}
	return &Driver{Hook: hook, kick: kick}
}
