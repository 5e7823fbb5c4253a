package pkcs10

// Object identifiers that occur in requests in practice, so that a refusal can name
// them.

// algorithmNames are names of algorithms of keys and signatures that are not
// accepted. The signature algorithms that are accepted are in schemes.
var algorithmNames = map[string]string{
	"1.2.840.113549.1.1.2":       "md2WithRSAEncryption (MD2)",
	"1.2.840.113549.1.1.3":       "md4WithRSAEncryption (MD4)",
	"1.2.840.113549.1.1.4":       "md5WithRSAEncryption (MD5)",
	"1.3.14.3.2.3":               "md5WithRSA (MD5)",
	"1.2.840.113549.1.1.5":       "sha1WithRSAEncryption (SHA-1)",
	"1.3.14.3.2.29":              "sha1WithRSASignature (SHA-1)",
	"1.3.14.3.2.15":              "shaWithRSASignature (SHA-0)",
	"1.2.840.113549.1.1.14":      "sha224WithRSAEncryption (SHA-224)",
	"1.2.840.113549.1.1.15":      "sha512-224WithRSAEncryption (SHA-512/224)",
	"1.2.840.113549.1.1.16":      "sha512-256WithRSAEncryption (SHA-512/256)",
	"1.3.36.3.3.1.2":             "rsaSignatureWithripemd160 (RIPEMD-160)",
	"2.16.840.1.101.3.4.3.13":    "id-rsassa-pkcs1-v1_5-with-sha3-224 (SHA3-224)",
	"2.16.840.1.101.3.4.3.14":    "id-rsassa-pkcs1-v1_5-with-sha3-256 (SHA3-256)",
	"2.16.840.1.101.3.4.3.15":    "id-rsassa-pkcs1-v1_5-with-sha3-384 (SHA3-384)",
	"2.16.840.1.101.3.4.3.16":    "id-rsassa-pkcs1-v1_5-with-sha3-512 (SHA3-512)",
	"1.3.6.1.5.5.7.6.30":         "id-RSASSA-PSS-SHAKE128",
	"1.3.6.1.5.5.7.6.31":         "id-RSASSA-PSS-SHAKE256",
	"1.2.840.10045.4.1":          "ecdsa-with-SHA1 (SHA-1)",
	"1.2.840.10045.4.2":          "ecdsa-with-Recommended",
	"1.2.840.10045.4.3":          "ecdsa-with-Specified",
	"1.2.840.10045.4.3.1":        "ecdsa-with-SHA224 (SHA-224)",
	"2.16.840.1.101.3.4.3.9":     "id-ecdsa-with-sha3-224 (SHA3-224)",
	"2.16.840.1.101.3.4.3.10":    "id-ecdsa-with-sha3-256 (SHA3-256)",
	"2.16.840.1.101.3.4.3.11":    "id-ecdsa-with-sha3-384 (SHA3-384)",
	"2.16.840.1.101.3.4.3.12":    "id-ecdsa-with-sha3-512 (SHA3-512)",
	"0.4.0.127.0.7.1.1.4.1.1":    "ecdsa-plain-SHA1 (SHA-1)",
	"0.4.0.127.0.7.1.1.4.1.3":    "ecdsa-plain-SHA256",
	"1.2.840.10040.4.1":          "DSA",
	"1.2.840.10040.4.3":          "dsa-with-sha1 (SHA-1)",
	"2.16.840.1.101.3.4.3.1":     "dsa-with-sha224 (SHA-224)",
	"2.16.840.1.101.3.4.3.2":     "dsa-with-sha256",
	"1.3.101.110":                "X25519",
	"1.3.101.111":                "X448",
	"1.3.101.113":                "Ed448",
	"1.2.840.113549.1.1.1":       "rsaEncryption",
	"1.2.840.113549.1.1.7":       "id-RSAES-OAEP",
	"1.2.840.113549.1.1.10":      "id-RSASSA-PSS",
	"1.2.840.113549.1.3.1":       "dhKeyAgreement",
	"1.2.840.10046.2.1":          "dhpublicnumber",
	"1.2.840.10045.2.1":          "id-ecPublicKey",
	"1.3.132.1.12":               "id-ecDH",
	"1.3.132.1.13":               "id-ecMQV",
	"1.2.156.10197.1.501":        "SM2-with-SM3",
	"1.2.643.7.1.1.1.1":          "GOST R 34.10-2012",
	"1.2.643.7.1.1.3.2":          "GOST R 34.10-2012 with GOST R 34.11-2012",
	"2.16.840.1.101.3.4.3.17":    "ML-DSA-44",
	"2.16.840.1.101.3.4.3.18":    "ML-DSA-65",
	"2.16.840.1.101.3.4.3.19":    "ML-DSA-87",
	"1.2.840.113549.1.9.16.3.17": "HSS/LMS",
	"1.3.6.1.5.5.7.6.2":          "id-alg-noSignature: it is not signed at all",
	"1.3.6.1.5.5.7.6.36":         "id-alg-unsigned: it is not signed at all",
}

// curveNames are names of curves that are not accepted, and of those that are.
var curveNames = map[string]string{
	"1.2.840.10045.3.1.1":     "P-192",
	"1.2.840.10045.3.1.7":     "P-256",
	"1.3.132.0.33":            "P-224",
	"1.3.132.0.34":            "P-384",
	"1.3.132.0.35":            "P-521",
	"1.3.132.0.8":             "secp160r1",
	"1.3.132.0.31":            "secp192k1",
	"1.3.132.0.32":            "secp224k1",
	"1.3.132.0.10":            "secp256k1",
	"1.3.132.0.16":            "sect283k1",
	"1.3.132.0.17":            "sect283r1",
	"1.3.36.3.3.2.8.1.1.3":    "brainpoolP192r1",
	"1.3.36.3.3.2.8.1.1.5":    "brainpoolP224r1",
	"1.3.36.3.3.2.8.1.1.7":    "brainpoolP256r1",
	"1.3.36.3.3.2.8.1.1.8":    "brainpoolP256t1",
	"1.3.36.3.3.2.8.1.1.9":    "brainpoolP320r1",
	"1.3.36.3.3.2.8.1.1.11":   "brainpoolP384r1",
	"1.3.36.3.3.2.8.1.1.12":   "brainpoolP384t1",
	"1.3.36.3.3.2.8.1.1.13":   "brainpoolP512r1",
	"1.3.36.3.3.2.8.1.1.14":   "brainpoolP512t1",
	"1.2.156.10197.1.301":     "SM2",
	"1.2.250.1.223.101.256.1": "FRP256v1",
}

// hashNames are names of hash functions in parameters of RSASSA-PSS.
var hashNames = map[string]string{
	"1.3.14.3.2.26":           "SHA-1",
	"1.2.840.113549.2.5":      "MD5",
	"2.16.840.1.101.3.4.2.1":  "SHA-256",
	"2.16.840.1.101.3.4.2.2":  "SHA-384",
	"2.16.840.1.101.3.4.2.3":  "SHA-512",
	"2.16.840.1.101.3.4.2.4":  "SHA-224",
	"2.16.840.1.101.3.4.2.5":  "SHA-512/224",
	"2.16.840.1.101.3.4.2.6":  "SHA-512/256",
	"2.16.840.1.101.3.4.2.7":  "SHA3-224",
	"2.16.840.1.101.3.4.2.8":  "SHA3-256",
	"2.16.840.1.101.3.4.2.9":  "SHA3-384",
	"2.16.840.1.101.3.4.2.10": "SHA3-512",
}

// nameOf returns the name of an object identifier, or its dotted form. An identifier
// can be as long as the request, so it is truncated.
func nameOf(names map[string]string, id string) string {
	name, ok := names[id]
	switch {
	case ok:
		return name
	case len(id) > maxShownOID:
		return "with the object identifier " + id[:maxShownOID] + "..."
	}
	return id
}

// maxShownOID bounds an object identifier in a sentence; known ones have up to 30
// characters.
const maxShownOID = 64
