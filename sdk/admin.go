// Package sdk is the public Go SDK. Admin is the management client of the REST
// API, over the server's Unix socket or the network.
package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
)

// maxAnswer bounds one answer: a full page of certificates is under 2 MiB.
const maxAnswer = 16 << 20

// Admin is a management client. Make one with Local or Remote. It has one method for
// each request of the API and nothing else, so that it is as large as the API is: a
// method sends its request and returns the answer. Its methods may be called from any
// goroutine. An error that the server answered is an *Error; one
// that kept the request from being answered is an *Unreachable.
type Admin struct {
	// HTTP does the requests. A time limit comes with each call's context.
	HTTP *http.Client
	// BaseURL is the server without a path: https://id.example.org.
	BaseURL string
	// Token is an operator token; empty over the Unix socket.
	Token string
	// PageSize is how many items a list asks for at a time; 0 is the most there
	// may be. A caller that wants the first few sets it lower.
	PageSize int
}

// Local returns the client of the server whose Unix socket is at path. A user that may
// open the socket is an admin.
func Local(path string) *Admin {
	var d net.Dialer
	return &Admin{
		BaseURL: "http://localhost",
		HTTP: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", path)
			},
		}},
	}
}

// Remote returns the client of the server at baseURL for the operator with token.
// client has the way to reach it and the roots to trust; nil is Go's defaults.
func Remote(baseURL, token string, client *http.Client) *Admin {
	if client == nil {
		client = &http.Client{}
	}
	return &Admin{HTTP: client, BaseURL: strings.TrimRight(baseURL, "/"), Token: token}
}

// Error is a refusal or failure that the server answered. errors.As also finds a
// *countersign.Error in it, and countersign.CodeOf its code.
type Error struct {
	api.Problem
}

func (e *Error) Error() string { return e.Detail }

// Unwrap returns the refusal as the server's own code would see it.
func (e *Error) Unwrap() error {
	return &countersign.Error{
		Code: countersign.Code(e.Code), Message: e.Detail, Next: e.Next, RetryAfter: time.Duration(e.RetryAfter) * time.Second,
	}
}

// Unreachable is a request that got no answer from the server. What it asked for
// may have been done.
type Unreachable struct {
	Err error
}

func (e *Unreachable) Error() string { return "couldn't reach the server: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Unreachable) Unwrap() error { return e.Err }

// call sends one request and reads the answer into a Res. body nil sends none.
func call[Res any](ctx context.Context, a *Admin, method, path string, body any) (*Res, error) {
	var reader io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("couldn't encode the request: %w", err)
		}
		reader = bytes.NewReader(b)
	}
	res, err := a.send(ctx, method, path, reader, "application/json")
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	return decode[Res](res)
}

// get reads one thing.
func get[Res any](ctx context.Context, a *Admin, path string) (*Res, error) {
	return call[Res](ctx, a, http.MethodGet, path, nil)
}

// post makes something, or acts on it. body nil sends none.
func post[Res any](ctx context.Context, a *Admin, path string, body any) (*Res, error) {
	return call[Res](ctx, a, http.MethodPost, path, body)
}

// segment returns s as one segment of a path. Dots are escaped where the whole
// segment is "." or "..", which url.PathEscape leaves alone and each server and
// proxy would take away with the segment before it (RFC 3986, 5.2.4).
func segment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// send sends one request. A body has the media type kind; nil is none.
func (a *Admin) send(ctx context.Context, method, path string, body io.Reader, kind string) (*http.Response, error) {
	if p, _, _ := strings.Cut(path, "?"); strings.Contains(p, "//") {
		// The server would clean the path and do something else.
		return nil, countersign.Errorf(countersign.BadRequest, "a name in the request is empty")
	}
	req, err := http.NewRequestWithContext(ctx, method, a.BaseURL+api.Base+path, body)
	if err != nil {
		return nil, fmt.Errorf("couldn't make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	if a.Token != "" {
		req.Header.Set("Authorization", "Bearer "+a.Token)
	}
	req.Header.Set("Accept", kind)
	res, err := a.HTTP.Do(req)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err // the URL says nothing that the caller does not know
		}
		return nil, &Unreachable{err}
	}
	return res, nil
}

func decode[Res any](res *http.Response) (*Res, error) {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, &Unreachable{err}
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("couldn't read the answer: more than %d bytes", maxAnswer)
	}
	if refused(res) {
		return nil, problemOf(res, b)
	}
	v := new(Res)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("couldn't read the answer, is this a Countersign server? %w", err)
	}
	return v, nil
}

// refused reports whether the answer is a problem. A 202 is one: what was asked
// for waits for an operator's approval.
func refused(res *http.Response) bool {
	return res.StatusCode/100 != 2 || res.Header.Get("Content-Type") == api.ProblemType
}

// problemOf reads the problem that an error answer carries, or words one for an
// answer that something between us and the server made.
func problemOf(res *http.Response, body []byte) *Error {
	var e Error
	if err := json.Unmarshal(body, &e.Problem); err != nil || e.Code == "" {
		e.Problem = api.Problem{
			Title:  http.StatusText(res.StatusCode),
			Detail: fmt.Sprintf("the server answered %d without a reason", res.StatusCode),
			Code:   string(codeOfStatus(res.StatusCode)),
		}
	}
	e.Status = res.StatusCode
	if e.RequestID == "" {
		e.RequestID = res.Header.Get(api.RequestIDHeader)
	}
	return &e
}

func codeOfStatus(status int) countersign.Code {
	switch status {
	case http.StatusUnauthorized:
		return countersign.Unauthenticated
	case http.StatusForbidden:
		return countersign.NotAllowed
	case http.StatusNotFound:
		return countersign.NotFound
	case http.StatusConflict:
		return countersign.Conflict
	case http.StatusTooManyRequests:
		return countersign.RateLimited
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return countersign.Unavailable
	}
	return countersign.Internal
}
