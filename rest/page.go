package rest

import (
	"cmp"
	"slices"

	"github.com/countersign-iot/countersign/api"
)

// body is a request with a body and nothing else.
type body[T any] struct{ Body T }

// value returns what an optional body holds; the zero value where there is none.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// as returns a function that shapes what a keeper returned.
func as[K, T any](shape func(K) T) func(K, error) (T, error) {
	return func(k K, err error) (out T, _ error) {
		if err != nil {
			return out, err
		}
		return shape(k), nil
	}
}

// asPage is as for one page of a list.
func asPage[K, T any](shape func(K) T) func([]K, string, error) (api.Page[T], error) {
	return func(list []K, next string, err error) (api.Page[T], error) {
		return api.Page[T]{Items: each(list, shape), Next: next}, err
	}
}

// each shapes the items of a list. It returns no nil, which would be null in JSON.
func each[K, T any](list []K, shape func(K) T) []T {
	out := make([]T, 0, len(list))
	for _, k := range list {
		out = append(out, shape(k))
	}
	return out
}

// limitOf returns how many items a page has.
func limitOf(p api.Paging) int {
	return min(cmp.Or(p.Limit, api.DefaultLimit), api.MaxLimit)
}

// cutPage cuts a page out of a list that is small enough to be read whole. keyOf
// returns each item's cursor; items are sorted by it.
func cutPage[T any](items []T, p api.Paging, keyOf func(T) string) api.Page[T] {
	slices.SortFunc(items, func(a, b T) int { return cmp.Compare(keyOf(a), keyOf(b)) })
	if p.After != "" {
		from, found := slices.BinarySearchFunc(items, p.After, func(t T, k string) int { return cmp.Compare(keyOf(t), k) })
		if found {
			from++
		}
		items = items[from:]
	}
	out := api.Page[T]{Items: append([]T{}, items...)}
	if limit := limitOf(p); len(items) > limit {
		out.Items, out.Next = items[:limit], keyOf(items[limit-1])
	}
	return out
}
