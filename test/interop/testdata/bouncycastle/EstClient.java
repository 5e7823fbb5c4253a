// Enrolls over EST with Bouncy Castle's client on Java's own TLS, renews with what
// it got, and prints what happened, one line each. It reads the token from standard
// input.
//
//	java -cp bcprov.jar:bcutil.jar:bcpkix.jar EstClient.java HOST PORT ROOTS.pem DEVICE

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStreamReader;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.Security;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.X509TrustManager;
import javax.security.auth.x500.X500Principal;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseDefaultHostnameAuthorizer;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequest;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

public class EstClient {
	static final int TIMEOUT_MILLIS = 20_000;

	final String host;
	final int port;
	final X509TrustManager[] trust;
	final String device;

	EstClient(String host, int port, String roots, String device) throws Exception {
		this.host = host;
		this.port = port;
		this.device = device;
		Set<TrustAnchor> anchors = new HashSet<>();
		try (FileInputStream in = new FileInputStream(roots)) {
			for (Certificate c : CertificateFactory.getInstance("X.509").generateCertificates(in)) {
				anchors.add(new TrustAnchor((X509Certificate) c, null));
			}
		}
		this.trust = JcaJceUtils.getCertPathTrustManager(anchors, null);
	}

	ESTService service(KeyManager[] keys) {
		JsseESTServiceBuilder b = new JsseESTServiceBuilder(host, port, trust);
		b.withHostNameAuthorizer(new JsseDefaultHostnameAuthorizer(new HashSet<>()));
		b.withTimeout(TIMEOUT_MILLIS);
		if (keys != null) {
			b.withKeyManagers(keys);
		}
		return b.build();
	}

	static KeyPair makeKey() throws Exception {
		KeyPairGenerator g = KeyPairGenerator.getInstance("EC");
		g.initialize(new ECGenParameterSpec("secp256r1"));
		return g.generateKeyPair();
	}

	PKCS10CertificationRequest request(KeyPair key) throws Exception {
		return new JcaPKCS10CertificationRequestBuilder(new X500Principal("CN=" + device), key.getPublic())
				.build(new JcaContentSignerBuilder("SHA256withECDSA").build(key.getPrivate()));
	}

	X509Certificate enroll(ESTService service, boolean again, KeyPair key, ESTAuth auth) throws Exception {
		EnrollmentResponse answer = service.simpleEnroll(again, request(key), auth);
		for (X509CertificateHolder holder : ESTService.storeToArray(answer.getStore())) {
			X509Certificate cert = new JcaX509CertificateConverter().getCertificate(holder);
			if (Arrays.equals(cert.getPublicKey().getEncoded(), key.getPublic().getEncoded())) {
				return cert;
			}
		}
		throw new IllegalStateException("the answer holds no certificate for the key");
	}

	static KeyManager[] holding(KeyPair key, X509Certificate cert) throws Exception {
		KeyStore store = KeyStore.getInstance("PKCS12");
		store.load(null, null);
		store.setKeyEntry("device", key.getPrivate(), new char[0], new Certificate[] {cert});
		KeyManagerFactory factory = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
		factory.init(store, new char[0]);
		return factory.getKeyManagers();
	}

	static ESTAuth password(String token) throws Exception {
		return new JcaHttpAuthBuilder("estuser", token.toCharArray()).build();
	}

	public static void main(String[] args) throws Exception {
		Security.addProvider(new BouncyCastleProvider()); // last, so that TLS and keys stay Java's own
		EstClient c = new EstClient(args[0], Integer.parseInt(args[1]), args[2], args[3]);
		String token = new BufferedReader(new InputStreamReader(System.in)).readLine();
		ESTService plain = c.service(null);

		System.out.println("cacerts " + ESTService.storeToArray(plain.getCACerts().getCertificateStore()).length);
		System.out.println("csrattrs " + plain.getCSRAttributes().hasAttributesResponse());
		KeyPair key = makeKey();
		try {
			c.enroll(plain, false, key, password("wrong"));
			System.out.println("wrong token enrolled");
		} catch (ESTException e) {
			System.out.println("wrong token " + e.getStatusCode());
		}
		X509Certificate cert = c.enroll(plain, false, key, password(token));
		System.out.println("enrolled " + cert.getSubjectX500Principal());

		KeyPair next = makeKey();
		X509Certificate renewed = c.enroll(c.service(holding(key, cert)), true, next, null);
		System.out.println("renewed " + renewed.getSubjectX500Principal() + " " + !renewed.getSerialNumber().equals(cert.getSerialNumber()));
	}
}
