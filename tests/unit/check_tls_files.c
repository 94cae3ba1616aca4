/* Certificate and key files: what is accepted, what is refused, and that no key stays behind. */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/pem.h>

#include "daemon/tls_key_file.h"
#include "tests/unit/tls_harness.h"

/* ---- files ---- */

static int
check_files(struct settings *settings, char *warning, struct error *error)
{
	warning[0] = '\0';
	error->text[0] = '\0';
	ck_assert_int_eq(
	    tls_check_files(settings, error), tls_check_files_warn(settings, warning, error));
	return error->text[0] ? -1 : 0;
}

static void
expect_refusal(struct settings *settings, enum error_code code, const char *words)
{
	char warning[TLS_WARNING_SIZE];
	struct error error = { 0 };

	ck_assert_int_eq(check_files(settings, warning, &error), -1);
	ck_assert_msg(error.code == code && strstr(error.text, words), "%s: %s",
	    error_code_name(error.code), error.text);
}

static void
expect_good(struct settings *settings, const char *warning_words)
{
	char warning[TLS_WARNING_SIZE];
	struct error error = { 0 };

	ck_assert_msg(check_files(settings, warning, &error) == 0, "%s", error.text);
	ck_assert_msg(*warning_words ? strstr(warning, warning_words) != NULL : !*warning,
	    "warning \"%s\"", warning);
}

START_TEST(good_files_pass)
{
	struct settings *settings = make_settings();

	write_files(&samples[_i]);
	expect_good(settings, "");
	set_string(&settings->tls_private_key_file, "");
	set_string(&settings->tls_server_cert_file, both_path);
	expect_good(settings, "");
	settings_free(settings);
}
END_TEST

START_TEST(dates_and_options_only_warn)
{
	const struct sample expired = { "EC", "P-256", 0, -1 };
	struct settings *settings = make_settings();

	write_files(&expired);
	expect_good(settings, "expired");
	write_files(P_256);
	settings->tls_options = 0x800;
	expect_good(settings, "");
	settings->tls_options = 0x40800;
	expect_good(settings, "0x40000 has no effect");
	settings_free(settings);
}
END_TEST

START_TEST(bad_files_are_refused)
{
	struct settings *settings = make_settings();
	char missing[80];

	write_files(ED25519);
	ck_assert_int_eq(chmod(key_path, 0644), 0);
	expect_refusal(settings, ERROR_DENIED, "0644");
	ck_assert_int_eq(chmod(key_path, 0660), 0);
	expect_refusal(settings, ERROR_DENIED, "0660");
	ck_assert_int_eq(chmod(key_path, 0640), 0);
	expect_good(settings, "");
	snprintf(missing, sizeof missing, "%s/missing", directory);
	set_string(&settings->tls_private_key_file, missing);
	expect_refusal(settings, ERROR_SYSTEM, "cannot open");
	set_string(&settings->tls_private_key_file, directory);
	expect_refusal(settings, ERROR_DENIED, "not a regular file");
	set_string(&settings->tls_private_key_file, certificate_path);
	expect_refusal(settings, ERROR_FORMAT, "no PEM private key");
	set_string(&settings->tls_server_cert_file, key_path);
	expect_refusal(settings, ERROR_FORMAT, "no PEM certificate");
	settings_free(settings);
}
END_TEST

START_TEST(a_key_of_another_certificate_is_refused)
{
	struct settings *settings = make_settings();

	write_files(&samples[_i]);
	ck_assert_int_eq(rename(certificate_path, other_path), 0);
	set_string(&settings->tls_server_cert_file, other_path);
	expect_good(settings, "");
	write_files(&samples[_i]);
	expect_refusal(settings, ERROR_DENIED, "does not belong");
	write_files(&samples[(_i + 1) % SAMPLE_COUNT]);
	expect_refusal(settings, ERROR_DENIED, "does not belong");
	settings_free(settings);
}
END_TEST

START_TEST(weak_and_strange_keys_are_refused)
{
	static const struct sample weak = { "RSA", NULL, 1024, 30 };
	static const struct sample strange = { "EC", "secp256k1", 0, 30 };
	static const struct sample other = { "ED448", NULL, 0, 30 };
	struct settings *settings = make_settings();
	struct tls_context *context;
	struct error error = { 0 };

	write_files(&weak);
	expect_refusal(settings, ERROR_DENIED, "too small");
	ck_assert_int_eq(tls_context_new(settings, &context, &error), -1);
	write_files(&strange);
	expect_refusal(settings, ERROR_DENIED, "not served");
	ck_assert_int_eq(tls_context_new(settings, &context, &error), -1);
	write_files(&other);
	expect_refusal(settings, ERROR_DENIED, "not served");
	settings_free(settings);
}
END_TEST

START_TEST(encrypted_keys_and_bad_ciphers_are_refused)
{
	struct settings *settings = make_settings();
	EVP_PKEY *key = generate(P_256);
	FILE *file;

	write_files(P_256);
	set_string(&settings->tls_cipher_list, "kRSA");
	expect_refusal(settings, ERROR_FORMAT, "tls-cipher-list");
	set_string(&settings->tls_cipher_list, "ECDHE-ECDSA-AES128-GCM-SHA256");
	expect_good(settings, "");
	file = open_private(key_path, "w");
	PEM_write_PrivateKey(
	    file, key, EVP_aes_128_cbc(), NULL, 0, NULL, (void *)(uintptr_t) "secret");
	fclose(file);
	expect_refusal(settings, ERROR_DENIED, "encrypted");
	EVP_PKEY_free(key);
	settings_free(settings);
}
END_TEST

/* ---- no key in a worker ---- */

enum {
	NEEDLE_SIZE = 48,
	MASK = 0x55
};

#define LARGEST_MAPPING (64ul << 20) /* bytes; larger ones are the shadow of a sanitizer */

/* The first bytes of the key's second line, masked, so that the search does not find itself. */
static void
read_needle(unsigned char needle[NEEDLE_SIZE])
{
	int fd = open(both_path, O_RDONLY);
	unsigned char byte = 0;

	ck_assert_int_ge(fd, 0);
	while (byte != '\n')
		ck_assert_int_eq(read(fd, &byte, 1), 1);
	for (int i = 0; i < NEEDLE_SIZE; i++) {
		ck_assert_int_eq(read(fd, &byte, 1), 1);
		needle[i] = byte ^ MASK;
	}
	close(fd);
}

static bool
memory_has(int memory, unsigned long start, unsigned long end, const unsigned char *needle)
{
	static unsigned char page[1 << 16];

	for (unsigned long at = start; at < end; at += sizeof page - NEEDLE_SIZE) {
		ssize_t got = pread(memory, page, sizeof page, (off_t)at);

		for (ssize_t i = 0; i + NEEDLE_SIZE <= got; i++) {
			int matched = 0;

			while (
			    matched < NEEDLE_SIZE && (page[i + matched] ^ MASK) == needle[matched])
				matched++;
			if (matched == NEEDLE_SIZE)
				return true;
		}
	}
	return false;
}

static bool
process_has(const unsigned char *needle)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	int memory = open("/proc/self/mem", O_RDONLY);
	unsigned long start, end;
	char line[512], mode[5];
	bool found = false;

	ck_assert_ptr_nonnull(maps);
	ck_assert_int_ge(memory, 0);
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx %4s", &start, &end, mode) == 3 && mode[1] == 'w' &&
		    end - start < LARGEST_MAPPING)
			found |= memory_has(memory, start, end, needle);
	fclose(maps);
	close(memory);
	return found;
}

START_TEST(a_key_beside_the_certificate_stays_out_of_the_worker)
{
	struct settings *settings = make_settings();
	unsigned char needle[NEEDLE_SIZE];
	struct tls_context *context;
	struct error error = { 0 };
	char *copy;
	pid_t child = fork();

	if (child == 0) {
		write_files(RSA_2048);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, NULL, 0), child);
	read_needle(needle);
	set_string(&settings->tls_server_cert_file, both_path);
	ck_assert_int_eq(tls_context_new(settings, &context, &error), 0);
	ck_assert(!process_has(needle));
	/* The search does find what is there. */
	copy = malloc(NEEDLE_SIZE);
	for (int i = 0; i < NEEDLE_SIZE; i++)
		((volatile char *)copy)[i] = (char)(needle[i] ^ MASK);
	ck_assert(process_has(needle));
	free(copy);
	tls_context_free(context);
	settings_free(settings);
}
END_TEST

static TCase *
files_case(void)
{
	TCase *tests = tcase_create("files");

	tcase_set_timeout(tests, 60);
	tcase_add_checked_fixture(tests, make_directory, remove_directory);
	tcase_add_loop_test(tests, good_files_pass, 0, SAMPLE_COUNT);
	tcase_add_test(tests, dates_and_options_only_warn);
	tcase_add_test(tests, bad_files_are_refused);
	tcase_add_loop_test(tests, a_key_of_another_certificate_is_refused, 0, SAMPLE_COUNT);
	tcase_add_test(tests, weak_and_strange_keys_are_refused);
	tcase_add_test(tests, encrypted_keys_and_bad_ciphers_are_refused);
	tcase_add_test(tests, a_key_beside_the_certificate_stays_out_of_the_worker);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("tls_files");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, files_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
